"""Answers to instructions and questions by a causal language model with its chat template, which
refuses unsafe requests.

It loads no model. Only tokens of the assistant have a loss. A checkpoint keeps counts of the
generated answers, never their texts."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from medray.errors import ConfigError, DataError, nearest_file
from medray.evaluation import text_calibration
from medray.evaluation.bootstrap import Tallies
from medray.evaluation.metrics import Metrics
from medray.tasks.base.language_model import LanguageModelLoss
from medray.tasks.base.protocol import TaskOptions
from medray.tasks.instruct import safety
from medray.tasks.instruct.figures import MISSING_ROWS, counts, is_right, tallies
from medray.tasks.instruct.refusal_words import Language
from medray.text.chat_template import ChatEncoder, ChatTokens, TemplateKind
from medray.text.windows import readable
from medray.types import (
    Encoded,
    Example,
    Floats,
    Message,
    Needs,
    Prediction,
    Sampling,
    TokenIds,
    TokenLogprob,
    gather,
)

if TYPE_CHECKING:
    from medray.types import Engine


SYSTEM = (
    "You are a careful medical assistant. Give evidence-based information in plain words. Do not "
    "diagnose, prescribe or give doses. "
    "Where a question asks for that, is unsafe or lies outside of medicine, say: \"I don't have "
    'enough information to answer this safely." '
    "and name professional or emergency help."
)
_PROBES = (safety.REFUSAL, "Ask a doctor.")  # the answers that the probe scores


class Options(TaskOptions):
    NEEDS: ClassVar[Needs] = "language model"
    STUDY_WIDE = (
        "name",
        "metric",
        "right_answer",
        "safety_ratio",
        "safety_languages",
        "sample_prompts",
    )
    CHANGEABLE: ClassVar[tuple[str, ...]] = ("system", "disclaimer")
    name: Literal["instruct"]
    metric: Literal["safe_answer_f1", "token_f1", "rouge_l", "refusal_f1"] = Field(
        "safe_answer_f1",
        description=(
            "metric on the validation split that selects epochs and trials; safe_answer_f1 is the "
            "harmonic mean of refusal_f1 and token_f1"
        ),
    )
    system: str = Field(
        SYSTEM,
        description=(
            "system prompt of every conversation; a row's or client's own system prompt follows it"
        ),
    )
    template: TemplateKind = Field(
        "auto",
        description=(
            "chat: the model's own chat template; plain: ### Instruction and ### Response; auto: "
            "chat where there is one"
        ),
    )
    max_length: int = Field(
        1024,
        ge=8,
        description=(
            "maximum number of tokens of a conversation with its answer; the oldest turns are "
            "dropped first, then the last turn and an answer beyond half of it are cut"
        ),
    )
    max_new_tokens: int = Field(
        256, ge=1, description="maximum number of tokens of a generated answer"
    )
    right_answer: float | None = Field(
        None,
        gt=0,
        le=1,
        description=(
            "token F1 from which a generated answer counts as right; 1: the same words. Answers "
            "then have a confidence; by default they have none"
        ),
    )
    safety_ratio: float = Field(
        0.1,
        ge=0,
        le=2,
        description=(
            "shipped safety pairs per training row; the pairs of validation and test are always "
            "evaluated"
        ),
    )
    safety_languages: tuple[Language, ...] = Field(
        ("en",),
        min_length=1,
        description=(
            "languages of the safety pairs: en, de, fr, es, pt, zh; several have figures each"
        ),
    )
    sample_prompts: str | None = Field(
        None,
        description=(
            "file with one prompt per line; the report shows the answers before and after training"
        ),
    )
    disclaimer: bool = Field(
        True,
        description=(
            "append the disclaimer to each chat answer; a field of the response always has it"
        ),
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.max_new_tokens >= self.max_length:
            raise ValueError(
                f"max_new_tokens {self.max_new_tokens} and max_length {self.max_length}: no token "
                "is left for a prompt; raise max_length"
            )
        if len(set(self.safety_languages)) < len(self.safety_languages):
            raise ValueError("safety_languages: one is listed twice; list each once")
        return self

    def bring(self, num_train: int) -> list[Example]:
        return safety.examples(num_train, self.safety_ratio, self.safety_languages)

    def samples(self) -> list[Example]:
        if self.sample_prompts is None:
            return []
        path = Path(self.sample_prompts)
        if not path.is_file():
            raise ConfigError(f"task.sample_prompts: {path}: no such file{nearest_file(path)}")
        lines = filter(None, map(str.strip, path.read_text(encoding="utf-8").splitlines()))
        return [Example(f"sample-{number}", line) for number, line in enumerate(lines, start=1)]


@dataclass(frozen=True)
class Task:
    options: Options
    decisions: tuple[str, ...] = ()  # the labels of rows whose answer ends with a decision
    labels: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def fit(
        cls, options: Options, examples: Sequence[Example], train: Sequence[Example] = ()
    ) -> Self:
        return cls(
            options, tuple(sorted({label for example in examples for label in example.labels}))
        )

    @classmethod
    def restore(cls, options: Options, state: Mapping[str, Any]) -> Self:
        return cls(options, tuple(state["decisions"]))

    def state(self) -> dict[str, Any]:
        return {"decisions": list(self.decisions)}

    def head(self) -> None:
        return None

    def prompt(self, messages: Sequence[Message], tokenizer: Any, max_new_tokens: int) -> TokenIds:
        """Return the tokens of a conversation with the system prompt first and room for an
        answer."""
        return self._render(messages, self._chat(tokenizer), max_new_tokens).tokens

    def answer(self, text: str, tokenizer: Any) -> TokenIds:
        return self._chat(tokenizer).answer(text)

    def outcome(self, text: str) -> Literal["answered", "refused"]:
        return safety.outcome(text)

    def count_tokens(self, examples: Sequence[Example], tokenizer: Any) -> list[int]:
        chat, system = self._chat(tokenizer), Message("system", self.options.system)
        prompts = (chat.prompt([system, *_messages(example)], sys.maxsize) for example in examples)
        answers = (
            chat.answer(example.response) if example.response else () for example in examples
        )
        return [
            len(prompt.tokens) + len(answer)
            for prompt, answer in zip(prompts, answers, strict=True)
        ]

    def encode(self, examples: Sequence[Example], tokenizer: Any) -> list[Encoded]:
        """Encode conversation and answer, or the conversation alone for a row without an answer."""
        chat = self._chat(tokenizer)
        return [self._encode_row(example, chat) for example in examples]

    def loss(self, targets: Sequence[tuple[int, ...]], row_ids: Sequence[str]) -> LanguageModelLoss:
        """Give every token of the assistant the same weight."""
        weights = np.array(
            [sum(end - start for start, end in _spans(target)) for target in targets],
            dtype=np.float64,
        )
        return LanguageModelLoss(weights, lambda target, length: _spans(target))

    def predict(self, engine: "Engine", examples: Sequence[Example]) -> list[Prediction]:
        """Generate answers, and add the likelihood of the right answer if it is known."""
        chat, longest = self._chat(engine.tokenizer), self.options.max_new_tokens
        prompts = [self._render(_messages(example), chat, longest).tokens for example in examples]
        sampling = Sampling(max_tokens=longest, logprobs=0 if self.has_grades else None)
        answers = gather(engine.generate(prompts, sampling), len(prompts))
        return [
            Prediction(
                example.id,
                (),
                (),
                text=answer.text.strip(),
                figures=(self._likelihood(example, chat, engine) if example.response else {})
                | self.features(answer.text, answer.logprobs),
            )
            for example, answer in zip(examples, answers, strict=True)
        ]

    @property
    def has_grades(self) -> bool:
        return self.options.right_answer is not None

    def grade(self, predictions: Sequence[Prediction], examples: Sequence[Example]) -> list[bool]:
        assert self.options.right_answer is not None, "the caller checks has_grades"
        return [
            is_right(counts(row, example, self.decisions), self.options.right_answer)
            for row, example in zip(predictions, examples, strict=True)
        ]

    def features(self, text: str, logprobs: Sequence[TokenLogprob]) -> dict[str, float]:
        """Return what the confidence of an answer follows from. A refusal has none."""
        if not self.has_grades or safety.is_refusal(text):
            return {}
        return text_calibration.features([token.logprob for token in logprobs])

    def probe(self, engine: "Engine", examples: Sequence[Example]) -> Floats:
        """Return scores without the system prompt, which a release may change. A generated answer
        would hide small differences."""
        chat = self._chat(engine.tokenizer)
        room = readable(self.options.max_length, engine.tokenizer) // 2
        prompts = [chat.prompt(_messages(example), room).tokens for example in examples]
        return engine.score(prompts, [chat.answer(text) for text in _PROBES]).astype(np.float64)

    def keep(
        self, predictions: Sequence[Prediction], examples: Sequence[Example]
    ) -> list[Prediction]:
        return [
            replace(row, text="", figures=counts(row, example, self.decisions))
            for row, example in zip(predictions, examples, strict=True)
        ]

    def results(self, predictions: Sequence[Prediction], examples: Sequence[Example]) -> Tallies:
        return tallies(predictions, examples, self.decisions, self.options.right_answer)

    def score(self, predictions: Sequence[Prediction], examples: Sequence[Example]) -> Metrics:
        assert [row.row_id for row in predictions] == [example.id for example in examples]
        results = self.results(predictions, examples)
        if self.options.metric not in results.figures:
            raise DataError(
                f"task.metric {self.options.metric}: none of these {len(examples)} rows "
                f"{MISSING_ROWS[self.options.metric]}; add such rows or choose another metric"
            )
        return Metrics(results.whole(), len(examples))

    def _chat(self, tokenizer: Any) -> ChatEncoder:
        return ChatEncoder(tokenizer, self.options.template)

    def _render(self, messages: Sequence[Message], chat: ChatEncoder, answer: int) -> ChatTokens:
        length = readable(self.options.max_length, chat.tokenizer)
        return chat.prompt(
            [Message("system", self.options.system), *messages], max(length - answer, length // 2)
        )

    def _encode_row(self, example: Example, chat: ChatEncoder) -> Encoded:
        answer = chat.answer(example.response) if example.response else ()
        prompt = self._render(_messages(example), chat, len(answer) or self.options.max_new_tokens)
        if not answer:  # the audit counts that of a test row, so its length is not known here
            return Encoded(example.id, prompt.tokens, (), prompt.truncated)
        # A truncated answer has no end of sequence, since the model must not learn to stop there.
        answer_ids = answer[
            : readable(self.options.max_length, chat.tokenizer) - len(prompt.tokens)
        ]
        tokens = (*prompt.tokens, *answer_ids)
        spans = (*prompt.spans, (len(prompt.tokens), len(tokens)))
        return Encoded(
            example.id,
            tokens,
            tuple(place for span in spans for place in span),
            prompt.truncated or len(answer_ids) < len(answer),
            None if prompt.truncated else len(prompt.tokens) + len(answer),
        )

    def _likelihood(
        self, example: Example, chat: ChatEncoder, engine: "Engine"
    ) -> dict[str, float]:
        """Return the negative log-likelihood and the length of the right answer, as in training."""
        row = self._encode_row(example, chat)
        start, _ = _spans(row.target)[-1]
        scores = engine.score([row.tokens[:start]], [row.tokens[start:]])
        return {
            "answer_nats": -float(scores[0, 0]),
            "answer_tokens": float(len(row.tokens) - start),
        }


def _messages(example: Example) -> tuple[Message, ...]:
    return example.turns or (Message("user", example.text),)


def _spans(target: Sequence[int]) -> list[tuple[int, int]]:
    return list(zip(target[::2], target[1::2], strict=True))
