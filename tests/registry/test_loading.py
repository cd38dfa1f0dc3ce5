"""`LoadedRelease`: the inputs that it accepts, and its merge with a base model."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from support import tiny

from medray.errors import ArtifactError, ConfigError, DataError
from medray.registry import loading
from medray.registry.registry import Registry
from medray.types import Example, Question, QuestionOption

TEXTS = ["tumour in the lung", "fever after infection"]


def test_texts_are_predicted_as_examples_with_their_positions_as_ids(tmp_path: Path) -> None:
    release = Registry(str(tmp_path)).publish(tiny.checkpoint(), "cancer").load()
    assert (release.reference, release.name, release.version) == ("cancer@1", "cancer", 1)
    of_texts = release.predict(TEXTS)
    assert [row.row_id for row in of_texts] == ["0", "1"]
    assert of_texts == release.predict(
        [Example(str(number), text) for number, text in enumerate(TEXTS)]
    )
    assert release.predict([Example("a", TEXTS[1])])[0].probabilities == pytest.approx(
        of_texts[1].probabilities, abs=1e-5
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "predict: row 1 is of type NoneType; give a text"),
        (float("nan"), "predict: row 1 is of type float; give a text"),
        ("\ud800", "predict: row 1 holds half of a surrogate pair"),
    ],
)
def test_what_is_no_text_is_named_by_its_row(text: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        loading.load(tiny.checkpoint()).predict(["a text", text])


def test_a_checkpoint_alone_is_named_by_its_place() -> None:
    release = loading.load(tiny.checkpoint())
    assert (release.reference, release.version, release.folder) == (
        str(tiny.checkpoint()),
        0,
        Path(tiny.checkpoint()),
    )


def test_a_merged_release_answers_its_probe_or_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release, merge = (
        Registry(str(tmp_path)).publish(tiny.checkpoint(), "cancer"),
        loading.merge_adapter,
    )
    merged = release.load(merge=True)
    assert merged.is_merged
    assert not isinstance(merged.model.network, PeftModel)
    for row, expectation in zip(merged.predict(TEXTS), release.load().predict(TEXTS), strict=True):
        assert row.probabilities == pytest.approx(expectation.probabilities, abs=1e-4)

    def wrong_merge(model: Any, precision: Any) -> Any:
        plain = merge(model, precision)
        with torch.no_grad():
            plain.network.classifier.weight.neg_()
        return plain

    monkeypatch.setattr(loading, "merge_adapter", wrong_merge)
    with pytest.raises(ArtifactError, match="its probe gives"):
        release.load(merge=True)


def test_a_release_answers_its_own_question_with_the_probabilities_of_a_prediction(
    tmp_path: Path,
) -> None:
    release = Registry(str(tmp_path)).publish(tiny.checkpoint(), "cancer").load()
    (prediction,) = release.predict(TEXTS[:1])
    (answer,) = release.decide(TEXTS[0]).answers
    assert (answer.value, answer.values) == (prediction.labels[0], release.task.labels)
    assert answer.probabilities == prediction.probabilities
    assert answer.confidence == prediction.confidence
    line = f"label: {answer.value}, {max(answer.probabilities):.2f}"
    assert repr(release.decide(TEXTS[0])) == line


def test_questions_have_the_form_of_data_files_or_are_objects() -> None:
    release = loading.load(tiny.checkpoint())
    (own,) = release.decide(TEXTS[0]).answers
    plain = {"type": "choice", "instructions": "Which?", "choices": list(reversed(own.values))}
    whole = Question("label", "choice", "Which?", tuple(map(QuestionOption, own.values)))
    for questions in ([{"name": "label", **plain}], {"label": plain}, (whole,)):
        (answer,) = release.decide(TEXTS[0], questions).answers
        assert dict(zip(answer.values, answer.probabilities, strict=True)) == pytest.approx(
            dict(zip(own.values, own.probabilities, strict=True))
        )


@pytest.mark.parametrize(
    ("text", "questions", "message"),
    [
        (None, [], "decide: the text is of type NoneType; give a text"),
        ("\ud800", [], "decide: the text holds half of a surrogate pair"),
        ("a", ["which?"], "decide: question 'q1': must be an object with type and instructions"),
        ("a", Question("a", "score", "b", ()), "decide: questions must be a mapping of names to"),
    ],
)
def test_what_is_no_question_is_named(text: Any, questions: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        loading.load(tiny.checkpoint()).decide(text, questions)


def test_inputs_that_are_no_list_are_refused() -> None:
    with pytest.raises(DataError, match="predict: the inputs are of type NoneType; give a list of"):
        loading.load(tiny.checkpoint()).predict(None)


def test_a_release_is_shown_in_one_line() -> None:
    assert re.fullmatch(
        r".*: classification among cancer, other; .*tiny-bert in fp32",
        repr(loading.load(tiny.checkpoint())),
    )


def test_wrong_arguments_of_a_release_are_named() -> None:
    release = loading.load(tiny.checkpoint())
    (prediction,) = release.predict(["a tumour"])
    with pytest.raises(DataError, match="explain: the text is of type NoneType"):
        release.explain(None)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="label: none of the release's"):
        release.explain("a tumour", label="")
    with pytest.raises(DataError, match="cite: the prediction is of type list"):
        release.cite("a tumour", [prediction])  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="citations: '2' is no number of sentences"):
        release.cite("a tumour", prediction, most_sentences="2")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="cite_answers: give a list of questions, and an answer"):
        release.cite_answers("a tumour", [], release.decide("a tumour").answers)
    with pytest.raises(ConfigError, match="precision 'fp8' is not known; allowed: bf16, fp16"):
        release.merge("fp8")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="export: is of type int"):
        release.export(5)  # type: ignore[arg-type]


def test_questions_may_come_from_a_generator_and_hold_characters_alone() -> None:
    release = loading.load(tiny.checkpoint())
    own = {"name": "label", "type": "choice", "instructions": "Which?"}
    options = ["cancer", "other"]
    (answer,) = release.decide("a", (one for one in [{**own, "options": options}])).answers
    assert set(answer.values) == set(options)
    with pytest.raises(DataError, match=r"question .label.: a text holds half of a surrogate"):
        release.decide("a", [{**own, "options": ["cancer", "\ud800"]}])
