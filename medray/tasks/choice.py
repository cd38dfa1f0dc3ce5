"""Chooses one of a closed set of labels with a causal language model, which scores every label
after the prompt or generates an answer.

It loads no model. A label's probability is that of its tokens and the end of sequence, normalized
over all labels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from medray.client.answers import ChoiceAnswer
from medray.errors import ConfigError, DataError
from medray.evaluation import metrics
from medray.tasks.base.labels import (
    ClassWeights,
    ClosedSetTask,
    check_one_label,
    check_options,
    first_label,
    indicators,
    places,
    weights_of,
)
from medray.tasks.base.language_model import LanguageModelLoss, answer_at_end, generate
from medray.tasks.base.protocol import TaskOptions
from medray.tasks.base.route import DisclaimedResponse, LabelRequest, Route, TextResponse
from medray.text.prompts import Prompt, answers, prompts
from medray.text.template import Template
from medray.text.windows import Keep
from medray.types import Encoded, Example, Floats, Needs, Prediction, Sampling, TokenIds

if TYPE_CHECKING:
    from medray.types import Engine

PARSE_FAILURES = "parse_failure_rate"


class Options(TaskOptions):
    NEEDS: ClassVar[Needs] = "language model"
    STUDY_WIDE = ("name", "metric", "positive_label")
    name: Literal["choice"]
    positive_label: str | None = Field(
        None,
        description="for exactly two labels, the positive one, which the binary metrics describe",
    )
    metric: str = Field(
        "f1_macro",
        description="metric on the validation split that selects epochs and trials",
    )
    prompt: str = Field(
        "{text}\n\nAnswer:",
        description=(
            "the prompt, with {text} for the row's text; special tokens are read as plain text"
        ),
    )
    answer: str = Field(" {label}", description="the answer after the prompt, with {label}")
    end_of_sequence: bool = Field(
        True,
        description="end answers with the model's end of sequence, in training and in scores",
    )
    max_length: int = Field(
        512,
        ge=1,
        description=(
            "maximum number of tokens of prompt and longest answer; only the row's text is cut "
            "to fit"
        ),
    )
    keep: Keep = Field("start", description="the part of a long text to keep")
    decoding: Literal["score", "generate"] = Field(
        "score",
        description="score every label, or generate an answer greedily and search it for a label",
    )
    length_normalisation: bool = Field(
        False, description="compare labels by the mean score of their tokens instead of the sum"
    )
    prior_correction: bool = Field(
        False, description="subtract the score of each label after a prompt without content"
    )
    prior_text: str = Field(
        "N/A", min_length=1, description="the text of the prompt without content"
    )
    class_weights: ClassWeights = Field(
        "none",
        description=(
            "weight of a training row's answer tokens by its label; balanced gives every class the "
            "same sum of rows"
        ),
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        self.around()
        Template.parse(self.answer).around("label")
        scores_only = [
            name for name in ("length_normalisation", "prior_correction") if getattr(self, name)
        ]
        if self.decoding == "generate" and scores_only:
            raise ValueError(
                f"{scores_only[0]} true and decoding 'generate': generated answers have no "
                "scores; set decoding to 'score'"
            )
        return self

    def around(self) -> tuple[str, str]:
        return Template.parse(self.prompt).around("text")


class ChooseRequest(LabelRequest):
    pass


class ChooseResponse(TextResponse, DisclaimedResponse):
    predictions: tuple[ChoiceAnswer, ...]


@dataclass(frozen=True, slots=True)
class Task(ClosedSetTask):
    options: Options
    routes: ClassVar = (Route("/v1/choose", ChooseRequest, ChooseResponse),)

    @classmethod
    def fit(
        cls, options: Options, examples: Sequence[Example], train: Sequence[Example] = ()
    ) -> Self:
        check_one_label(examples)
        labels = tuple(sorted({label for example in examples for label in example.labels}))
        if len(labels) < 2:
            raise DataError(
                f"{len(examples)} examples have {len(labels)} labels ({', '.join(labels)}); a "
                "choice needs at least two"
            )
        metrics.check_positive(labels, options.positive_label)
        check_options(
            labels, metric=options.metric, class_weights=options.class_weights, multi_label=False
        )
        return cls(options, labels)

    @classmethod
    def restore(cls, options: Options, state: Mapping[str, Any]) -> Self:
        return cls(options, tuple(state["labels"]))

    def state(self) -> dict[str, Any]:
        return {"labels": list(self.labels)}

    def head(self) -> None:
        return None

    def encode(self, examples: Sequence[Example], tokenizer: Any) -> list[Encoded]:
        """Encode prompt and answer, or the prompt alone for a row without a label."""
        label_ids = self._label_ids(tokenizer)
        rows = []
        for example, prompt in zip(
            examples, self._prompts(examples, tokenizer, label_ids), strict=True
        ):
            if not example.labels:
                rows.append(Encoded(example.id, prompt.tokens, (), prompt.truncated))
                continue
            (place,) = places(example, self.labels)
            rows.append(
                Encoded(
                    example.id,
                    (*prompt.tokens, *label_ids[place]),
                    (place, len(label_ids[place])),
                    prompt.truncated,
                )
            )
        return rows

    def loss(self, targets: Sequence[tuple[int, ...]], row_ids: Sequence[str]) -> LanguageModelLoss:
        """Give each answer token the weight of its row's class."""
        classes, counts = np.array(targets, dtype=np.int64).reshape(-1, 2).T
        weights = (
            weights_of(self.options.class_weights, self.labels, classes, np.ones(len(classes)))[
                classes
            ]
            * counts
        )
        return LanguageModelLoss(weights, answer_at_end, has_class_weights=True)

    def predict(self, engine: "Engine", examples: Sequence[Example]) -> list[Prediction]:
        return self._predict(engine, examples, self._prompt_ids(engine, examples))

    def predict_rows(
        self, engine: "Engine", examples: Sequence[Example], rows: Sequence[Encoded]
    ) -> list[Prediction]:
        # A row is a prompt and its answer, whose length ends the target.
        prompt_ids = [row.tokens[: len(row.tokens) - row.target[1]] for row in rows]
        return self._predict(engine, examples, prompt_ids)

    def _predict(
        self, engine: "Engine", examples: Sequence[Example], prompt_ids: Sequence[TokenIds]
    ) -> list[Prediction]:
        if self.options.decoding == "generate":
            return self._generate(engine, examples, prompt_ids)
        answers = self.read_probe(self._scores(engine, prompt_ids))
        return [
            replace(answer, row_id=example.id)
            for example, answer in zip(examples, answers, strict=True)
        ]

    def probe(self, engine: "Engine", examples: Sequence[Example]) -> Floats:
        """Return scores for any decoding, since a generated answer would hide small differences."""
        return self._scores(engine, self._prompt_ids(engine, examples))

    def read_probe(self, outputs: Floats) -> list[Prediction]:
        probabilities = np.exp(outputs - np.logaddexp.reduce(outputs, axis=1, keepdims=True))
        return self.decide(
            [Prediction(str(row), (), tuple(one.tolist())) for row, one in enumerate(probabilities)]
        )

    def tune(self, predictions: Sequence[Prediction], examples: Sequence[Example]) -> Self:
        return self

    def decide(self, predictions: Sequence[Prediction]) -> list[Prediction]:
        """Choose the most probable label. All zeros mean that a generated answer has no label."""
        return [
            replace(
                row,
                labels=(self.labels[int(np.argmax(row.probabilities))],)
                if any(row.probabilities)
                else (),
            )
            for row in predictions
        ]

    def score(
        self, predictions: Sequence[Prediction], examples: Sequence[Example]
    ) -> metrics.Metrics:
        assert [row.row_id for row in predictions] == [example.id for example in examples]
        check_one_label(examples)
        classes = [places(example, self.labels)[0] for example in examples]
        predicted_places = [
            self.labels.index(row.labels[0]) if row.labels else metrics.NO_ANSWER
            for row in predictions
        ]
        figures = metrics.single_label(
            classes,
            [row.probabilities for row in predictions],
            predicted_places,
            self.labels,
            self.options.positive_label,
        )
        if self.options.decoding == "score":
            return figures
        return replace(
            figures,
            values={
                **figures.values,
                PARSE_FAILURES: predicted_places.count(metrics.NO_ANSWER) / len(predicted_places),
            },
        )

    def respond(self, predictions: Sequence[Prediction]) -> tuple[ChoiceAnswer, ...]:
        return tuple(self._answer(row) for row in predictions)

    def _answer(self, row: Prediction) -> ChoiceAnswer:
        assert row.confidence is not None  # responses are calibrated
        order = np.argsort(-np.array(row.probabilities), kind="stable")
        return ChoiceAnswer(
            label=row.labels[0] if row.labels else None,
            labels=row.labels,
            confidence=row.confidence,
            abstained=row.abstained,
            ranked=tuple(self.labels[place] for place in order),
            probabilities=dict(zip(self.labels, row.probabilities, strict=True)),
        )

    def _label_ids(self, tokenizer: Any) -> list[TokenIds]:
        """Return the tokens of each label after the prompt. Raise if two are the same or, without
        an end of sequence, if one is the beginning of another."""
        template, after = Template.parse(self.options.answer), self.options.around()[1]
        end = self.options.end_of_sequence
        if end and tokenizer.eos_token_id is None:
            raise ConfigError(
                "task.end_of_sequence true: the tokenizer of this base model has no end of "
                "sequence; set it to false"
            )
        label_ids = answers(
            [template.render({"label": label}) for label in self.labels],
            tokenizer,
            lead=after or "a",
            end=end,
        )
        label_of: dict[TokenIds, str] = {}
        for label, ids in zip(self.labels, label_ids, strict=True):
            if ids in label_of:
                raise DataError(
                    f"labels {label_of[ids]!r} and {label!r} are the same tokens for this base "
                    "model; rename one of them"
                )
            label_of[ids] = label
        for label, ids in zip(self.labels, label_ids, strict=True):
            if begins := next(
                (
                    label_of[ids[:length]]
                    for length in range(1, len(ids))
                    if ids[:length] in label_of
                ),
                None,
            ):
                raise ConfigError(
                    f"label {begins!r} is the beginning of {label!r}; set task.end_of_sequence to "
                    "true"
                )
        return label_ids

    def _prompts(
        self, examples: Sequence[Example], tokenizer: Any, label_ids: Sequence[TokenIds]
    ) -> list[Prompt]:
        options, longest = self.options, max(map(len, label_ids))
        texts = [example.text for example in examples]
        return prompts(
            texts,
            tokenizer,
            around=options.around(),
            max_length=options.max_length,
            answer=longest,
            keep=options.keep,
        )

    def _prompt_ids(self, engine: "Engine", examples: Sequence[Example]) -> list[TokenIds]:
        label_ids = self._label_ids(engine.tokenizer)
        return [row.tokens for row in self._prompts(examples, engine.tokenizer, label_ids)]

    def _scores(self, engine: "Engine", prompt_ids: Sequence[TokenIds]) -> Floats:
        label_ids = self._label_ids(engine.tokenizer)
        if self.options.prior_correction:
            prior = Example("", self.options.prior_text)
            prompt_ids = [*prompt_ids, *self._prompt_ids(engine, [prior])]
        scores = engine.score(prompt_ids, label_ids).astype(np.float64)
        if self.options.length_normalisation:
            scores /= np.array([len(ids) for ids in label_ids])
        return scores[:-1] - scores[-1] if self.options.prior_correction else scores

    def _generate(
        self, engine: "Engine", examples: Sequence[Example], prompt_ids: Sequence[TokenIds]
    ) -> list[Prediction]:
        label_ids = self._label_ids(engine.tokenizer)
        texts = generate(engine, prompt_ids, Sampling(max_tokens=max(map(len, label_ids))))
        rows = (indicators([first_label(text, self.labels)], self.labels)[0] for text in texts)
        predictions = [
            Prediction(example.id, (), tuple(map(float, row)))
            for example, row in zip(examples, rows, strict=True)
        ]
        return self.decide(predictions)
