"""Tests of `medray evaluate` as a gate: --at-least and --not-worse-than."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from support import tiny

from medray import cli
from medray.config.load import dump_settings
from medray.evaluation.bootstrap import Comparison
from medray.registry.evaluate import ReleaseComparison, ReleaseEvaluation, evaluate
from medray.registry.registry import Registry


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "study.yaml"
    path.write_text(dump_settings(tiny.study(tmp_path)))
    Registry("runs").publish(tiny.checkpoint(), "cancer")
    return path


def run(*gates: str) -> int:
    call = ["evaluate", "cancer@1", "study.yaml", "--split", "validation"]
    return cli.main([*call, "--json", *gates])


def test_a_release_that_reaches_its_minimum_and_equals_the_other_passes(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--at-least", "f1_macro=0", "--not-worse-than", "cancer@1") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["refusals"] == []
    (pair,) = document["comparisons"]
    assert (pair["other"], pair["comparison"]["difference"]) == ("cancer@1", 0.0)


def test_a_gate_that_refuses_prints_the_result_and_a_sentence_and_exits_with_3(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--at-least", "f1_macro=1.01", "--at-least", "accuracy=1.02") == 3
    output = capsys.readouterr()
    document = json.loads(output.out)
    assert [sentence.split(" is ")[0] for sentence in document["refusals"]] == [
        "cancer@1: f1_macro",
        "cancer@1: accuracy",
    ]
    assert "below --at-least 1.01\n" in output.err


@pytest.mark.parametrize(
    ("gate", "status", "message"),
    [
        ("f1_macro", 2, "is not of the form METRIC=VALUE"),
        ("f1_makro=0.5", 1, "did you mean 'f1_macro'"),
        ("log_loss=0.5", 1, "unknown metric"),
    ],
)
def test_a_gate_without_a_value_or_with_an_unknown_metric_is_an_error(
    gate: str, status: int, message: str, study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--at-least", gate) == status
    assert message in capsys.readouterr().err


@pytest.fixture
def evaluation(study: Path, tmp_path: Path) -> ReleaseEvaluation:
    data = tiny.study(tmp_path).data
    return evaluate("cancer", data, "validation", storage_path="runs", log_dir=tmp_path / "log")


@pytest.mark.parametrize(
    ("difference", "low", "high", "is_refused"),
    [
        (-0.2, -0.3, -0.1, True),
        (-0.2, -0.5, 0.1, False),
        (0.2, 0.1, 0.3, False),
    ],
)
def test_only_a_loss_that_the_rows_show_is_refused(
    difference: float, low: float, high: float, is_refused: bool, evaluation: ReleaseEvaluation
) -> None:
    pair = ReleaseComparison("cancer@2", Comparison(difference, low, high, 0.01))
    refusals = replace(evaluation, comparisons=(pair,)).refusals({})
    assert len(refusals) == is_refused
    assert all("is worse than that of cancer@2 on the same" in sentence for sentence in refusals)
