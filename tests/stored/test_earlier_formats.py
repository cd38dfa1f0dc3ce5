"""This version reads files of an earlier one: its releases predict the same, and its interrupted
trial and study resume with equal results."""

import json
import pickletools
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest
from stored.make import (
    AFTER,
    BEFORE,
    COMPLETE,
    EXPECTATIONS,
    INCOMPLETE,
    answer_over_http,
    predictions,
    results,
    unpack,
)
from support import in_process, tiny

from medray import cli
from medray.config.load import load_study
from medray.registry.registry import Registry

TOLERANCE = 1e-4


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Unpack the stored files into the working directory, to which their paths are relative."""
    unpack(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def expectations() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(EXPECTATIONS.read_bytes())
    return content


def check_alike(current: Any, earlier: Any, where: str = "") -> None:
    """Assert that keys, texts and counts are equal, and numbers within a tolerance."""
    if isinstance(earlier, dict):
        assert list(current) == list(earlier), where
        for key, value in earlier.items():
            check_alike(current[key], value, f"{where}.{key}")
    elif isinstance(earlier, list):
        assert len(current) == len(earlier), where
        for number, value in enumerate(earlier):
            check_alike(current[number], value, f"{where}[{number}]")
    elif isinstance(earlier, float):
        assert current == pytest.approx(earlier, abs=TOLERANCE, rel=TOLERANCE), where
    else:
        assert current == earlier, where


def test_a_stored_release_is_whole_and_predicts_as_it_did(
    folder: Path, expectations: dict[str, Any]
) -> None:
    assert cli.main(["verify", "cancer@best", "--storage-path", "runs"]) == 0
    check_alike(predictions("cancer@best"), expectations["predictions"])


def test_a_stored_release_answers_over_http_as_it_did(
    folder: Path, expectations: dict[str, Any]
) -> None:
    answer = answer_over_http("cancer@best")
    for prediction in answer["predictions"]:
        assert prediction.pop("citations") is None  # a field of later versions
    check_alike(answer, expectations["answer"])


def test_a_stored_release_with_a_record_of_8_bits_predicts_as_one_without(
    folder: Path, expectations: dict[str, Any]
) -> None:
    record = json.loads((folder / "runs" / "releases" / "cancer" / "2.json").read_bytes())
    assert record["int8"]["metric"] == "f1_macro"
    release = Registry("runs").resolve("cancer@2")
    assert release.record.notes == record["notes"]
    release.verify()
    check_alike(predictions("cancer@2"), expectations["predictions"])


def test_a_stored_state_names_no_class_of_medray(folder: Path) -> None:
    """A pickle names classes by module, so such a state could not be read after a move."""
    modules = set()
    states = list(folder.rglob("*.pt"))
    assert [state.parents[2].name for state in states] == [INCOMPLETE]
    for state in states:
        with zipfile.ZipFile(state) as archive:
            (name,) = [name for name in archive.namelist() if name.endswith("data.pkl")]
            modules |= {
                str(value).split(" ")[0]
                for code, value, _ in pickletools.genops(archive.read(name))
                if code.name == "GLOBAL"
            }
    assert modules == {"collections", "torch", "torch._utils"}
    others = [
        path
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".pt" and path.read_bytes()[:2] in (b"PK", b"\x80\x02")
    ]
    assert not others


def test_a_stored_trial_goes_on_from_its_state_to_equal_figures(
    folder: Path, expectations: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    (run,) = (folder / "runs" / "tiny").iterdir()
    (run / "trials" / INCOMPLETE).rename(folder / "trial")  # the folder of `tiny.trial`
    settings = json.loads((folder / "trial" / "trial.json").read_bytes())["settings"]
    config = load_study(
        [run / "study.yaml"], [f"{name}={value}" for name, value in settings.items()]
    )
    with caplog.at_level("INFO", logger="medray"):
        result = tiny.trial(config, folder).run(resume=True)
    (first,) = re.findall(r"resumed after step (\d+) of", caplog.text)
    assert BEFORE < int(first) < AFTER
    history = [
        {name: getattr(row, name) for name in ("epoch", "step", "train_loss", "metrics")}
        for row in result.history
    ]
    check_alike(history, expectations["study"]["histories"][INCOMPLETE])


def test_a_stored_run_that_was_interrupted_goes_on_and_ends_as_it_did(
    folder: Path,
    expectations: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    in_process.without_ray(monkeypatch)
    assert cli.main(["study", "study.yaml", "--resume"]) == 0
    ending, earlier = results(folder), expectations["study"]
    # Baselines are fitted anew, by the methods of today.
    for content in (ending, earlier):
        content["entries"] = {name: content["entries"][name] for name in (COMPLETE, INCOMPLETE)}
    check_alike(ending, earlier)
    output = capsys.readouterr()
    (first,) = re.findall(r"resumed after step (\d+) of", output.err)
    assert BEFORE < int(first) < AFTER
    assert f"{INCOMPLETE}  epoch" in output.out
    assert f"{COMPLETE}  epoch" not in output.out, "a trial that had ended was trained again"
    release = Registry("runs").resolve("winner@best")
    assert release.reference == "winner@1"
