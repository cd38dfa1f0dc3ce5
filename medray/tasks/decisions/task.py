"""Typed questions about a text. It loads no model.

A causal language model scores every option as a continuation of its question. All questions of a
text are in one row, which reads the text once. An encoder scores each option in a row of its own
(`whole_rows`). No question and no option attends to another, so an answer depends neither on the
other questions nor on the order of the options."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from medray.errors import ConfigError, DataError
from medray.evaluation import decision_scores
from medray.evaluation.bootstrap import Tallies
from medray.evaluation.metrics import Metrics
from medray.tasks.base.branches import BranchLoss, BranchRow, HeadBranchLoss
from medray.tasks.base.labels import check_one_label, places
from medray.tasks.base.protocol import TaskOptions
from medray.tasks.base.questions import label_question
from medray.tasks.decisions.whole_rows import check_distinct, spelling, whole_rows, wording
from medray.text.prompts import Prompt, answers, prompts
from medray.text.template import Template
from medray.text.windows import Keep
from medray.types import (
    PREDICATE_VALUES,
    Branch,
    Encoded,
    Example,
    Floats,
    Head,
    Needs,
    Prediction,
    Question,
    QuestionAnswer,
    QuestionOption,
    TokenIds,
)

if TYPE_CHECKING:
    from medray.types import Engine

_Row = tuple[Prompt, tuple[Branch, ...]]
MOST_QUESTIONS = 50  # in the state: a data set with more has questions of single rows
_PROBE_QUESTIONS = 8
_PROBE = Question(
    "probe", "predicate", "Is it a study?", tuple(map(QuestionOption, PREDICATE_VALUES))
)


class Options(TaskOptions):
    NEEDS: ClassVar[Needs] = "head or language model"
    STUDY_WIDE = ("name", "metric")
    name: Literal["decisions"]
    metric: Literal["f1_macro", "accuracy", "log_loss", "brier"] = Field(
        "f1_macro",
        description="metric on the validation split that selects epochs and trials",
    )
    prompt: str = Field(
        "{text}",
        description=(
            "for decoders: the beginning of a row, with {text}; special tokens are read as plain "
            "text"
        ),
    )
    question: str = Field(
        "\n\n{question}\nAnswer:",
        description=(
            "for decoders: a question after the text, with {question} for its instructions and "
            "the descriptions of its options"
        ),
    )
    answer: str = Field(
        " {option}", description="for decoders: an option after its question, with {option}"
    )
    label_question: str | None = Field(
        None,
        min_length=1,
        description=(
            "for rows with one label instead of questions: the instructions of a choice among the "
            "labels"
        ),
    )
    max_length: int = Field(
        512,
        ge=1,
        description=(
            "maximum number of tokens of a text with one of its questions and an option; only the "
            "text is cut to fit"
        ),
    )
    keep: Keep = Field("start", description="the part of a long text to keep")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        self.around()
        Template.parse(self.question).around("question")
        Template.parse(self.answer).around("option")
        return self

    def around(self) -> tuple[str, str]:
        return Template.parse(self.prompt).around("text")


@dataclass(frozen=True, slots=True)
class Task:
    options: Options
    questions: tuple[Question, ...] = ()  # of the training rows
    # Whether the rows have more questions than `questions` holds.
    has_more: bool = False
    is_encoder: bool = False  # a head scores the options
    labels: ClassVar[tuple[str, ...]] = ()
    takes_any_question: ClassVar[bool] = True

    @classmethod
    def fit(
        cls, options: Options, examples: Sequence[Example], train: Sequence[Example] = ()
    ) -> Self:
        if train and not train[0].questions:
            return cls(options, (label_question(options.label_question, examples, train),))
        questions: dict[Question, None] = {}
        for example in train:
            if not any(example.answers):
                raise DataError(
                    f"{example.where or example.id}: the row answers no question; give an answer, "
                    "or remove the row"
                )
            if len(questions) <= MOST_QUESTIONS:
                questions |= dict.fromkeys(example.questions)
        return cls(options, tuple(questions)[:MOST_QUESTIONS], len(questions) > MOST_QUESTIONS)

    @classmethod
    def restore(cls, options: Options, state: Mapping[str, Any]) -> Self:
        questions = tuple(map(Question.from_dict, state["questions"]))
        is_encoder = bool(state.get("is_encoder", False))  # an earlier medray had decoders alone
        return cls(options, questions, bool(state["has_more"]), is_encoder)

    def state(self) -> dict[str, Any]:
        state = {"questions": list(map(asdict, self.questions)), "has_more": self.has_more}
        return state | ({"is_encoder": True} if self.is_encoder else {})

    def head(self) -> Head | None:
        return Head(("score",)) if self.is_encoder else None

    def for_encoder(self) -> Self:
        return replace(self, is_encoder=True)

    def encode(self, examples: Sequence[Example], tokenizer: Any) -> list[Encoded]:
        """Encode each text with its questions and all their options. A row with answers leaves
        out the questions that it does not answer."""
        examples = self.with_answers(examples)
        rows = [_answerable(example) for example in examples]
        encoded = []
        for example, row in zip(examples, self._rows(rows, tokenizer), strict=True):
            prompt, branches = row
            shares = tuple(
                own or (0.0,) * len(branch.continuations)
                for own, branch in zip(
                    filter(None, example.answers) if example.answers else [()] * len(branches),
                    branches,
                    strict=True,
                )
            )
            layout = BranchRow(prompt.tokens, branches, shares)
            encoded.append(Encoded(example.id, layout.tokens(), layout.target(), prompt.truncated))
        return encoded

    def loss(self, targets: Sequence[tuple[int, ...]], row_ids: Sequence[str]) -> BranchLoss:
        """Give each question of a row the weight 1."""
        return (HeadBranchLoss if self.is_encoder else BranchLoss).of(targets)

    def predict(self, engine: "Engine", examples: Sequence[Example]) -> list[Prediction]:
        """Answer each example's own questions, or those of the training rows if it has none."""
        examples = [replace(example, answers=()) for example in self.with_answers(examples)]
        return self._predict(engine, examples, self._rows(examples, engine.tokenizer))

    def predict_rows(
        self, engine: "Engine", examples: Sequence[Example], rows: Sequence[Encoded]
    ) -> list[Prediction]:
        examples = self.with_answers(examples)
        # A row of `encode` lacks questions without an answer, which `predict` answers too.
        partial = [replace(example, answers=()) for example in examples if not all(example.answers)]
        others = iter(self._rows(partial, engine.tokenizer) if partial else ())
        whole = [
            _parse(row) if all(example.answers) else next(others)
            for example, row in zip(examples, rows, strict=True)
        ]
        return self._predict(engine, examples, whole)

    def _predict(
        self, engine: "Engine", examples: Sequence[Example], rows: Sequence[_Row]
    ) -> list[Prediction]:
        predictions = []
        for example, scores in zip(examples, self._scores(engine, rows), strict=True):
            own = tuple(map(_answer, example.questions, scores))
            predictions.append(Prediction(example.id, (), (), answers=own))
        return predictions

    def probe(self, engine: "Engine", examples: Sequence[Example]) -> Floats:
        questions = self.questions[:_PROBE_QUESTIONS] or (_PROBE,)
        rows = [replace(example, questions=questions, answers=()) for example in examples]
        scores = self._scores(engine, self._rows(rows, engine.tokenizer))
        return np.array([np.concatenate(own) for own in scores])

    def keep(
        self, predictions: Sequence[Prediction], examples: Sequence[Example]
    ) -> list[Prediction]:
        return list(predictions)

    def results(self, predictions: Sequence[Prediction], examples: Sequence[Example]) -> Tallies:
        return decision_scores.tally(predictions, self.with_answers(examples), self._group)

    def score(self, predictions: Sequence[Prediction], examples: Sequence[Example]) -> Metrics:
        return decision_scores.score(predictions, self.with_answers(examples), self._group)

    def with_answers(self, examples: Sequence[Example]) -> list[Example]:
        """Return the examples with questions: their own, or those of the training rows. A label is
        the answer to the question about labels."""
        return [self._with_questions(example) for example in examples]

    def question_rows(self, text: str, questions: Sequence[Question]) -> list[Example]:
        return [Example("0", text, questions=tuple(questions))]

    def read_answers(
        self, predictions: Sequence[Prediction], questions: Sequence[Question]
    ) -> list[QuestionAnswer]:
        (row,) = predictions
        return list(row.answers)

    def _group(self, question: Question) -> str:
        """Return the name under which a question's figures are counted: its own, or its kind where
        the questions differ from row to row."""
        return question.kind if self.has_more else question.name

    def _with_questions(self, example: Example) -> Example:
        questions = example.questions or self.questions
        if not questions:
            raise DataError(
                f"{example.where or example.id}: has no questions, and the task was trained for "
                "none; give the row its questions"
            )
        if example.questions or not example.labels:
            return replace(example, questions=questions)
        (question,) = questions
        check_one_label([example])
        (place,) = places(example, question.values)
        shares = tuple(float(at == place) for at in range(len(question.values)))
        return replace(example, questions=questions, answers=(shares,))

    def _scores(self, engine: "Engine", rows: Sequence[_Row]) -> list[list[Floats]]:
        if self.is_encoder:
            inputs = [
                ids for _, branches in rows for branch in branches for ids in branch.continuations
            ]
            outputs = iter(engine.logits(inputs)[:, 0].astype(np.float64) if inputs else ())
            return [
                [np.array(list(islice(outputs, len(branch.continuations)))) for branch in branches]
                for _, branches in rows
            ]
        scores = engine.score_branches(
            [prompt.tokens for prompt, _ in rows], [branches for _, branches in rows]
        )
        return [[values.astype(np.float64) for values in own] for own in scores]

    def _rows(self, examples: Sequence[Example], tokenizer: Any) -> list[_Row]:
        """Return the row of each text: its prompt and its questions. In those of an encoder, each
        option is a whole row, and the prompt is empty."""
        if self.is_encoder:
            return whole_rows(
                examples,
                tokenizer,
                max_length=self.options.max_length,
                keep=self.options.keep,
            )
        branch_of = self._branches(
            dict.fromkeys(question for example in examples for question in example.questions),
            tokenizer,
        )
        branches = [
            tuple(branch_of[question] for question in example.questions) for example in examples
        ]
        # A text is cut for its own questions alone, whatever else is in the batch.
        places: dict[int, list[int]] = defaultdict(list)
        for at, own in enumerate(branches):
            places[max(map(_path, own))].append(at)
        prompt_at: dict[int, Prompt] = {}
        for longest, members in places.items():
            own_prompts = prompts(
                [examples[at].text for at in members],
                tokenizer,
                around=self.options.around(),
                max_length=self.options.max_length,
                answer=longest,
                keep=self.options.keep,
            )
            prompt_at |= dict(zip(members, own_prompts, strict=True))
        return [(prompt_at[at], own) for at, own in enumerate(branches)]

    def _branches(self, questions: Iterable[Question], tokenizer: Any) -> dict[Question, Branch]:
        if tokenizer.eos_token_id is None:
            raise ConfigError(
                "task decisions: the tokenizer of this base model has no end of sequence, which "
                "must end an answer; choose another base model"
            )
        template = Template.parse(self.options.question)
        lead = self.options.around()[1] or "a"
        return {
            question: Branch(
                answers(
                    [template.render({"question": wording(question)})],
                    tokenizer,
                    lead=lead,
                    end=False,
                )[0],
                self._option_ids(question, tokenizer),
            )
            for question in questions
        }

    def _option_ids(self, question: Question, tokenizer: Any) -> tuple[TokenIds, ...]:
        template = Template.parse(self.options.answer)
        lead = Template.parse(self.options.question).around("question")[1] or "a"
        texts = [template.render({"option": spelling(question, v)}) for v in question.values]
        ids = tuple(answers(texts, tokenizer, lead=lead, end=True))
        check_distinct(question, ids)
        return ids


def _answerable(example: Example) -> Example:
    """Return a row with the questions that it answers, or with all where it answers none."""
    if not example.answers:
        return example
    questions = (
        question
        for question, shares in zip(example.questions, example.answers, strict=True)
        if shares
    )
    return replace(example, questions=tuple(questions))


def _parse(row: Encoded) -> _Row:
    layout = BranchRow.parse(row.tokens, row.target)
    return Prompt(layout.prompt, row.truncated), layout.branches


def _path(branch: Branch) -> int:
    return len(branch.tokens) + max(map(len, branch.continuations))


def _answer(question: Question, scores: Floats) -> QuestionAnswer:
    probabilities = np.exp(scores - np.logaddexp.reduce(scores))
    return QuestionAnswer(
        question.name, question.kind, question.values, tuple(probabilities.tolist())
    )
