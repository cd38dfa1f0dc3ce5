"""Fits the calibration of answers to typed questions on validation rows: a temperature per kind of
question, and a threshold per question below which a model abstains."""

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
    """The probabilities of answers, the place of the right options, and the names of questions."""

    probabilities: list[tuple[float, ...]] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    names: list[str] = field(default_factory=list)

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
    predictions: Sequence[Prediction], examples: Sequence[Example], config: CalibrationConfig
) -> CalibrationRecord:
    """Fit to predictions before calibration. The right option of a soft answer is its most probable
    one."""
    by_kind: dict[QuestionKind, _Answers] = defaultdict(_Answers)
    for prediction, example in zip(predictions, examples, strict=True):
        for answer, shares in zip(prediction.answers, example.answers, strict=False):
            if shares and not answer.is_refusal:
                own = by_kind[answer.kind]
                own.probabilities.append(answer.probabilities)
                own.places.append(shares.index(max(shares)))
                own.names.append(answer.name)
    temperatures = {
        kind: fit_temperature(answers.matrix(), answers.truth(), multi_label=False)
        for kind, answers in by_kind.items()
        if config.temperature
    }
    record = AnswerCalibrationRecord(
        temperatures=temperatures,
        abstention={}
        if config.abstain_precision is None
        else _rules(by_kind, temperatures, config.abstain_precision, config.abstain_level),
    )
    return CalibrationRecord(num_rows=len(examples), answers=record)


def _rules(
    by_kind: dict[QuestionKind, _Answers],
    temperatures: dict[QuestionKind, float],
    precision: float,
    level: float,
) -> dict[str, AbstentionRecord]:
    names = {name for answers in by_kind.values() for name in answers.names}
    rules = {}
    for kind, answers in by_kind.items():
        probabilities = rescale(answers.matrix(), temperatures.get(kind, 1.0), multi_label=False)
        sure = probabilities.max(axis=1)
        right = probabilities.argmax(axis=1) == np.array(answers.places)
        groups = np.array(answers.names if len(names) <= _MOST_RULES else [kind] * len(sure))
        for group in dict.fromkeys(groups.tolist()):
            rows = groups == group
            rules[group] = fit_abstention(sure[rows], right[rows], precision, level)
    return rules
