"""Baselines of typed questions: the share of each option among the training answers of a question,
and a searched regression per question. Both know the questions of training rows alone."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from medray.evaluation import baselines
from medray.evaluation.baselines import Baseline, TrainingRows, ValidationRows
from medray.types import Example, Floats, Prediction, Question, QuestionAnswer

# A question without its options' order and descriptions.
QuestionKey = tuple[str, str, str, frozenset[str]]
# Returns the metric of predictions for examples; the higher, the better.
AnswerMetric = Callable[[Sequence[Example], Sequence[Prediction]], float]


@dataclass(frozen=True)
class AnswerBaseline:
    """A simple model per question of the training rows. For other questions, all options are
    equally likely."""

    name: str
    shares: Mapping[
        QuestionKey, Mapping[str, float]
    ]  # of each option, the answer that reads no text
    # The options of a question in the order of the columns, and a model of its texts.
    models: Mapping[QuestionKey, tuple[tuple[str, ...], Baseline]] = field(default_factory=dict)

    @classmethod
    def majority(cls, train: Sequence[Example]) -> "AnswerBaseline":
        """Give each option its share in the training answers of its question."""
        sums: dict[QuestionKey, dict[str, float]] = defaultdict(lambda: defaultdict(float))
        for example in train:
            for question, shares in zip(example.questions, example.answers, strict=False):
                for value, share in zip(question.values, shares, strict=False):
                    sums[_key(question)][value] += share
        return cls(
            "majority",
            {
                key: {value: share / sum(own.values()) for value, share in own.items()}
                for key, own in sums.items()
            },
        )

    def tfidf(
        self, train: Sequence[Example], validation: Sequence[Example], metric: AnswerMetric
    ) -> "AnswerBaseline | None":
        """Search a regression on counted words per question. It has this baseline's answers where a
        question has one right option or no word in its texts. Return None if all have."""
        models = {}
        name = self.name
        for key, shares in self.shares.items():
            values = tuple(sorted(shares))
            rows = _QuestionRows.of(train, key, values)
            if len(set(rows.truth.argmax(axis=1).tolist())) < 2:
                continue
            others = _QuestionRows.of(validation, key, values)
            best = baselines.tfidf(
                TrainingRows(rows.texts, rows.truth.astype(np.bool_), multi_label=False),
                ValidationRows(others.texts, others.value_of(values, metric)),
            )
            if best:
                models[key], name = (values, best), best.name
        return AnswerBaseline(name, self.shares, models) if models else None

    def predict(self, examples: Sequence[Example]) -> list[Prediction]:
        """Return an answer per question of each example."""
        answers: dict[tuple[int, int], Mapping[str, float]] = {}
        places: dict[QuestionKey, list[tuple[int, int]]] = defaultdict(list)
        for row, example in enumerate(examples):
            for at, question in enumerate(example.questions):
                places[_key(question)].append((row, at))
        for key, cells in places.items():
            if key not in self.models:
                even = dict.fromkeys(key[-1], 1 / len(key[-1]))
                answers |= dict.fromkeys(cells, self.shares.get(key, even))
                continue
            values, model = self.models[key]
            table = model.probabilities([examples[row].text for row, _ in cells])
            for cell, probabilities in zip(cells, table.tolist(), strict=True):
                answers[cell] = dict(zip(values, probabilities, strict=True))
        return [
            Prediction(
                example.id,
                (),
                (),
                answers=tuple(
                    _answer(question, answers[row, at])
                    for at, question in enumerate(example.questions)
                ),
            )
            for row, example in enumerate(examples)
        ]


@dataclass(frozen=True)
class _QuestionRows:
    """The rows that answer a question, each with this question alone."""

    examples: list[Example]
    truth: Floats  # 1 for the most probable option of each row

    @property
    def texts(self) -> list[str]:
        return [example.text for example in self.examples]

    @classmethod
    def of(
        cls, examples: Sequence[Example], key: QuestionKey, values: Sequence[str]
    ) -> "_QuestionRows":
        rows, truth = [], []
        for example in examples:
            for question, shares in zip(example.questions, example.answers, strict=False):
                if shares and _key(question) == key:
                    rows.append(
                        Example(example.id, example.text, questions=(question,), answers=(shares,))
                    )
                    most = question.values[shares.index(max(shares))]
                    truth.append([float(value == most) for value in values])
        return cls(rows, np.array(truth).reshape(len(rows), len(values)))

    def value_of(self, values: Sequence[str], metric: AnswerMetric) -> Callable[[Floats], float]:
        def value(probabilities: Floats) -> float:
            if not self.examples:
                return 0.0
            predictions = [
                Prediction(
                    example.id,
                    (),
                    (),
                    answers=(_answer(example.questions[0], dict(zip(values, row, strict=True))),),
                )
                for example, row in zip(self.examples, probabilities.tolist(), strict=True)
            ]
            return metric(self.examples, predictions)

        return value


def _key(question: Question) -> QuestionKey:
    return question.name, question.kind, question.instructions, frozenset(question.values)


def _answer(question: Question, shares: Mapping[str, float]) -> QuestionAnswer:
    probabilities = tuple(shares.get(value, 0.0) for value in question.values)
    return QuestionAnswer(question.name, question.kind, question.values, probabilities)
