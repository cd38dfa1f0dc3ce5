"""A new system prompt is a new version of a release. It needs no training, and all ways to query
the release use it."""

from pathlib import Path

import pytest
from support import tiny

import medray
from medray import cli
from medray.errors import ConfigError
from medray.registry import card
from medray.registry.registry import Registry
from medray.storage import checkpoint
from medray.types import Message


@pytest.fixture(scope="module")
def folder() -> Path:
    return tiny.checkpoint("instruct", "task.safety_ratio=0")


@pytest.mark.document(
    "003",
    "a medical system prompt",
    where="`task.system`, `medray publish --system-file`",
)
def test_it_is_published_without_training_and_obeyed(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    registry = Registry(str(tmp_path))
    first = registry.publish(folder, "instruct")
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("the heart failure\n")
    answers = [
        "publish",
        "instruct@1",
        "--system-file",
        str(prompt),
        "--alias",
        "best",
        "--storage-path",
        str(tmp_path),
    ]
    assert cli.main(answers) == 0
    assert "instruct@2 is instruct@best" in capsys.readouterr().out
    second = registry.resolve("instruct@best")
    assert second.record.content_id == first.record.content_id
    assert len(list((tmp_path / "checkpoints").iterdir())) == 1
    assert second.record.notes == "instruct@1 with another system"
    before, after = first.load(), second.load()  # both have the probe of one checkpoint
    messages = [Message("user", "fever after surgery")]
    tokens = [
        release.task.prompt(messages, release.engine.tokenizer, 6) for release in (before, after)
    ]
    read = [before.engine.tokenizer.decode(ids) for ids in tokens]
    assert "the study of" in read[0]
    assert "the heart failure" not in read[0]
    assert "the heart failure" in read[1]
    assert "the study of" not in read[1]
    assert (
        medray.load("instruct@best", storage_path=str(tmp_path)).task.options.system
        == "the heart failure"
    )
    assert "- task.system: the heart failure" in card.render(
        second.record, checkpoint.read(folder), merged=False
    )
    third = registry.change("instruct@2", {"disclaimer": False}, name="terse")
    assert third.record.task_options == {"system": "the heart failure", "disclaimer": False}
    assert (third.record.name, third.record.version) == ("terse", 1)


def test_what_training_decided_cannot_be_changed(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    registry = Registry(str(tmp_path))
    registry.publish(folder, "instruct")
    with pytest.raises(
        ConfigError, match="task 'instruct' trains with its 'template'; allowed: disclaimer, system"
    ):
        registry.change("instruct@1", {"template": "chat"})
    with pytest.raises(ConfigError, match="disclaimer: "):
        registry.change("instruct@1", {"disclaimer": 3.5})
    assert registry.versions("instruct") == [1]
    for options, status in (
        (["--system", "a", "--system-file", "b"], 2),
        (["--system", "a", "--base", "b"], 2),
        (["--system-file", "nowhere.txt"], 1),
    ):
        call = ["publish", "instruct@1", *options, "--storage-path", str(tmp_path)]
        assert cli.main(call) == status
    assert cli.main(["publish", str(folder), "--storage-path", str(tmp_path)]) == 2
    assert "NAME is missing" in capsys.readouterr().err


def test_a_release_of_labels_has_no_system_prompt(tmp_path: Path) -> None:
    registry = Registry(str(tmp_path / "releases"))
    registry.publish(tiny.checkpoint(), "cancer")
    with pytest.raises(
        ConfigError, match="task 'classification' trains with its 'system'; nothing is allowed here"
    ):
        registry.change("cancer@1", {"system": "a"})
