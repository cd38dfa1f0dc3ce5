"""Fits the calibration of answers to typed questions on validation rows: a temperature per kind of
question, and a threshold per question or kind below which a model abstains."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from medray.config.study import CalibrationConfig
from medray.evaluation.calibration import fit_abstention, fit_temperature, rescale
from medray.records import AbstentionRecord, AnswerCalibrationRecord, CalibrationRecord
from medray.types import Bools, Example, Floats, Prediction, QuestionKind

_MOST_RULES = 50  # questions with a threshold of their own; more share one per kind


@dataclass
class _Answers:
    """The probabilities of answers, the places of the right options, the names of questions, and
    the numbers of texts."""

    probabilities: list[tuple[float, ...]] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    texts: list[int] = field(default_factory=list)

    def matrix(self) -> Floats:
        """Return a row per answer; options that a question does not have are impossible."""
        table = np.zeros((len(self.probabilities), max(map(len, self.probabilities))))
        for row, own in enumerate(self.probabilities):
            table[row, : len(own)] = own
        return table

    def truth(self) -> Bools:
        table = np.zeros_like(self.matrix(), dtype=np.bool_)
        table[np.arange(len(table)), self.places] = True
        return table


def fit(
    predictions: Sequence[Prediction],
    examples: Sequence[Example],
    config: CalibrationConfig,
    *,
    by_kind: bool = False,
) -> CalibrationRecord:
    """Fit to predictions before calibration. The right option of a soft answer is its most probable
    one. Thresholds are `by_kind` where rows have questions of their own."""
    kinds: dict[QuestionKind, _Answers] = defaultdict(_Answers)
    for text, (prediction, example) in enumerate(zip(predictions, examples, strict=True)):
        for answer, shares in zip(prediction.answers, example.answers, strict=False):
            if shares and not answer.is_refusal:
                own = kinds[answer.kind]
                own.probabilities.append(answer.probabilities)
                own.places.append(shares.index(max(shares)))
                own.names.append(answer.name)
                own.texts.append(text)
    temperatures = {
        kind: fit_temperature(answers.matrix(), answers.truth(), multi_label=False)
        for kind, answers in kinds.items()
        if config.temperature
    }
    record = AnswerCalibrationRecord(temperatures=temperatures)
    if config.abstain_precision is not None:
        names = {name for answers in kinds.values() for name in answers.names}
        by_kind = by_kind or len(names) > _MOST_RULES
        rules: dict[str, AbstentionRecord] = {}
        for kind, answers in kinds.items():
            probabilities = rescale(
                answers.matrix(), temperatures.get(kind, 1.0), multi_label=False
            )
            sure = probabilities.max(axis=1)
            right = probabilities.argmax(axis=1) == np.array(answers.places)
            for group, rows in _groups(kind, answers, by_kind=by_kind).items():
                rules[group] = fit_abstention(
                    sure[rows], right[rows], config.abstain_precision, config.abstain_level
                )
        record = record.model_copy(update={"abstention": rules, "by_kind": by_kind})
    return CalibrationRecord(num_rows=len(examples), answers=record)


def _groups(kind: QuestionKind, answers: _Answers, *, by_kind: bool) -> dict[str, list[int]]:
    """Return the answers of each threshold. One of a kind takes one answer per text in turn, since
    answers about one text are not independent."""
    rows: dict[object, list[int]] = defaultdict(list)
    for at, (name, text) in enumerate(zip(answers.names, answers.texts, strict=True)):
        rows[text if by_kind else name].append(at)
    if by_kind:
        return {kind: [own[turn % len(own)] for turn, own in enumerate(rows.values())]}
    return {str(name): own for name, own in rows.items()}
