"""Settings, hubs and paths that would stop or break a study: each is one sentence."""

import json
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from medray import cli
from medray.config import files
from medray.config.load import load_study
from medray.errors import ConfigError
from medray.study.run import Run

LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + number)}: &{chr(98 + number)} [{','.join(['*' + chr(97 + number)] * 10)}]\n"
    for number in range(8)
)
MERGES = "a: &a {k: 1}\n" + "".join(
    f"{chr(98 + number)}: &{chr(98 + number)} {{<<: [{','.join(['*' + chr(97 + number)] * 10)}]}}\n"
    for number in range(8)
)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (f"{LAUGHS}name: *i\n", "keys and values with what its aliases repeat"),
        (
            f"{LAUGHS}seed: *i\nname: x\ndata: {{format: {{name: jsonl, path: a, id: *i}}}}\n",
            "keys and values with what its aliases repeat",
        ),
        (f"{MERGES}name: *i\n", "keys and values with what its aliases repeat"),
        ("a: &a [*a]", "without end"),
        ("a: " + "[" * 5000, "nested too deeply"),
        ("".join(f"k{number}: 1\n" for number in range(40_000)), "is longer than 262144 bytes"),
        ("seed: " + "9" * 5000, "is not valid YAML"),
        ("seed: 2020-13-45", "is not valid YAML"),
        ("seed: !!bool x", "is not valid YAML"),
        ("seed: !!int ''", "is not valid YAML"),
    ],
)
def test_settings_that_would_grow_or_break_the_reader_are_a_sentence(
    tmp_path: Path, content: str, message: str
) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message) as error:
        load_study([path])
    assert len(str(error.value)) < 1000
    with pytest.raises(ConfigError, match=message):
        files.parse_value("seed=...", content)


def test_a_file_without_end_is_no_study() -> None:
    with pytest.raises(ConfigError, match="/dev/zero: is longer than 262144 bytes"):
        load_study(["/dev/zero"])


def test_of_many_unknown_keys_some_are_named_and_the_others_counted(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text("".join(f"k{number}: 1\n" for number in range(15_000)))
    with pytest.raises(ConfigError, match=r"has 14985 mistakes more") as error:
        load_study([tmp_path / "study.yaml"])
    assert len(str(error.value).splitlines()) == 21


@pytest.mark.parametrize("at", ["²", "9" * 5000, "99", "-1"])
def test_a_position_that_a_list_has_not_is_a_sentence(at: str) -> None:
    with pytest.raises(ConfigError, match="is not a position in a list of 1") as error:
        files.put(
            {"base_models": [{"source": "a"}]},
            f"base_models.{at}.source",
            "x",
            where=f"base_models.{at}.source=x",
        )
    assert len(str(error.value)) < 500


def test_a_hub_that_never_answers_is_waited_for_once(tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(50)
        connections: list[socket.socket] = []

        def accept() -> None:
            while True:
                try:
                    connections.append(silent.accept()[0])
                except OSError:
                    return

        threading.Thread(target=accept, daemon=True).start()
        script = "from medray.models import download\nprint(download.is_reached())"
        env = {
            "PATH": "/usr/bin:/bin",
            "HOME": str(tmp_path),
            "HF_HOME": str(tmp_path),
            "HF_HUB_ETAG_TIMEOUT": "2",
        }
        env["HF_ENDPOINT"] = f"http://127.0.0.1:{silent.getsockname()[1]}"
        process = subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            text=True,
            env=env,
            timeout=100,
            check=True,
        )
        assert process.stdout.strip() == "False"
        heads = [each for each in connections if each.recv(4) == b"HEAD"]
        assert len(heads) == 1


def test_a_study_whose_run_could_not_be_read_again_does_not_start(tmp_path: Path) -> None:
    parts = {
        "base": {
            "name": "big",
            "base_models": [{"source": "a"}],
            "task": {"name": "classification"},
            "train": {"epochs": 1},
        }
    }
    parts["labels"] = {
        "data": {"format": {"name": "jsonl", "path": "a", "labels": ["a" * 200_000]}}
    }
    parts["text"] = {"storage_path": str(tmp_path), "data": {"format": {"id": "a" * 200_000}}}
    for name, part in parts.items():
        (tmp_path / f"{name}.yaml").write_text(json.dumps(part))
    study = load_study([tmp_path / f"{name}.yaml" for name in parts])
    with pytest.raises(
        ConfigError,
        match=r"^study big, with all its files and settings, is longer than 262144 bytes",
    ):
        Run.start(study)
    assert not (tmp_path / "big").exists()


# The command


@pytest.mark.parametrize("name", ["afile", "afile.csv", "afile/below"])
def test_an_output_that_is_a_file_is_refused_and_left_alone(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name.partition("/")[0]).write_text("precious")
    (tmp_path / "in.csv").write_text("id,text\n1,fever\n")
    arguments = [
        "predict",
        "cancer@best",
        "--input",
        str(tmp_path / "in.csv"),
        "--storage-path",
        str(tmp_path / "runs"),
    ]
    assert cli.main([*arguments, "--output", str(tmp_path / name)]) == 1
    output = capsys.readouterr().err
    assert "is not a folder that can be written to" in output
    assert len(output.splitlines()) == 1
    assert (tmp_path / name.partition("/")[0]).read_text() == "precious"


@pytest.mark.parametrize("command", ["init", "review", "report"])
def test_a_path_that_cannot_be_is_one_sentence(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([command, "a" * 5000]) == 1
    output = capsys.readouterr().err
    assert output == f"medray: {'a' * 200}: cannot be used: File name too long\n"


# Time in proportion to length
