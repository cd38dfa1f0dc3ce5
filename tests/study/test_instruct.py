"""A study of generated answers, from YAML to a report and a release. A task without labels uses the
same stages."""

import json
from pathlib import Path

import pytest
from support import in_process, tiny
from support.watcher import RecordingWatcher

from medray import cli
from medray.config.load import dump_settings
from medray.evaluation import leaderboard_files
from medray.registry import card, evaluate
from medray.registry.registry import Registry
from medray.reports import html_report, study_data
from medray.storage import checkpoint
from medray.study import preflight


@pytest.mark.document(
    "003",
    "answers to new questions are shown",
    where="`task.sample_prompts`, `report.html`",
)
def test_answers_in_words_are_ranked_compared_reported_and_published(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("group with infection <b>\n\nblood pressure\n")
    study = tiny.instruct_study(
        tmp_path,
        "task.metric=safe_answer_f1",
        "task.safety_ratio=0.5",
        "task.right_answer=0.5",
        "calibration.abstain_precision=0.1",
        f"task.sample_prompts={prompts}",
        "data.evaluation_rows=6",
        "search={num_trials: 2, space: {train.learning_rate: {choice: [0.01, 0.02]}}}",
        "publish={name: instruct}",
    )
    preflight.check(study)
    watcher = RecordingWatcher()
    outcome = in_process.run(study, watcher)
    (audit,) = watcher.audits
    assert "always answering" not in audit.render()
    board, source = outcome.board, study.base_models[0].source
    assert outcome.analysis is None
    assert {entry.name for entry in board.entries if entry.kind == "reference"} == {
        f"{source}, untuned"
    }
    assert {pair.other for pair in board.comparisons} >= {f"{source}, untuned"}
    best = board.best
    assert {
        "safe_answer_f1",
        "refusal_f1",
        "token_f1",
        "rouge_l",
        "over_refusal",
    } <= best.test.keys()
    assert best.validation["perplexity"] > 1
    assert (
        "perplexity" not in best.test
    )  # the answers of test rows stay closed until the final test
    assert {"accuracy", "ece", "coverage"} <= best.test.keys()
    assert best.test_interval is not None
    assert best.test_interval.low <= best.test["safe_answer_f1"] <= best.test_interval.high
    assert any("95 % interval" in sentence for sentence in leaderboard_files.sentences(board))
    samples = json.loads((outcome.run.folder / "samples.json").read_text())
    assert samples["prompts"] == ["group with infection <b>", "blood pressure"]
    assert all(len(answers) == 2 for answers in samples["answers"].values())
    assert {best.name, f"{source}, untuned"} <= samples["answers"].keys()
    text = html_report.render(html_report.compose(study_data.gather(outcome.run)))
    assert "group with infection &lt;b&gt;" in text
    assert samples["answers"][best.name][1] in text
    assert "safe answer F1" in text
    assert outcome.release is not None
    record = outcome.release.record.calibration
    assert record.texts is not None
    assert record.abstention is not None
    assert record.abstention.precision == 0.1
    (answer,) = outcome.release.load().predict(["group with infection"])
    assert answer.confidence is not None
    text = card.render(
        outcome.release.record, checkpoint.read(outcome.release.folder()), merged=False
    )
    assert "pipeline_tag: text-generation" in text
    assert "| refusal_f1 |" in text
    again = evaluate.evaluate(
        "instruct@best",
        study.data,
        "validation",
        storage_path=study.storage_path,
        log_dir=tmp_path / "log",
    )
    assert again.metrics.values == pytest.approx(best.validation, abs=1e-4)
    assert again.analysis is None
    path = tmp_path / "study.yaml"
    path.write_text(dump_settings(study))
    assert cli.main(["evaluate", "instruct@best", str(path), "--split", "validation"]) == 0
    assert "perplexity" in capsys.readouterr().out
    assert cli.main(["review", str(outcome.run.folder)]) == 1
    assert "its task generates text" in capsys.readouterr().err
    assert (
        Registry(study.storage_path).change("instruct@best", {"system": "the blood"}).record.version
        == 2
    )
