"""Mentions by a causal language model that writes them as a JSON list: untuned, with examples in
the prompt, or fine-tuned.

It loads no model. A mention is a span of the text. Listed names that the text does not contain are
dropped and counted."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from medray.client.answers import MentionsAnswer
from medray.errors import ConfigError, DataError
from medray.evaluation.bootstrap import Tallies
from medray.evaluation.metrics import Metrics
from medray.tasks.base import mention_task
from medray.tasks.base.language_model import LanguageModelLoss, answer_at_end, generate
from medray.tasks.base.protocol import TaskOptions
from medray.tasks.extraction import json_list
from medray.text.prompts import Prompt, answers, prompts
from medray.text.template import Template
from medray.types import Encoded, Example, Floats, Mention, Needs, Prediction, Sampling

if TYPE_CHECKING:
    from medray.types import Engine


RATES = {
    "invalid_json_rate": ("invalid", "rows"),
    "repaired_json_rate": ("repaired", "rows"),
    "dropped_mention_rate": ("dropped", "listed"),
}
BEGINNING = "["
_BETWEEN = "\n\n"  # separates instruction, examples and row


class Options(TaskOptions):
    NEEDS: ClassVar[Needs] = "language model"
    STUDY_WIDE = ("name", "metric", "num_examples")
    name: Literal["extraction"]
    metric: mention_task.Metric = Field(
        "mention_f1",
        description="metric on the validation split that selects epochs and trials",
    )
    instruction: str = Field(
        "List the diseases that the abstract names, in its own words, as a JSON list of strings. "
        "If it names none, the list is empty.",
        description="the beginning of the prompt; may be empty",
    )
    prompt: str = Field(
        "Abstract: {text}\nDiseases:",
        description=(
            "the part of the prompt for a row or an example, with {text}; if it ends with '[', the "
            "model continues the list"
        ),
    )
    answer: str = Field(
        " {mentions}", description="the answer after the prompt, with {mentions} for the JSON list"
    )
    num_examples: int = Field(
        0,
        ge=0,
        description=(
            "number of training rows in the prompt with their answers, the same for every row"
        ),
    )
    occurrences: Literal["listed", "all"] = Field(
        "listed",
        description=(
            "each listed name stands for one place in the text (listed), or for all its places "
            "(all)"
        ),
    )
    max_length: int = Field(
        1024,
        ge=1,
        description="maximum number of tokens of prompt and answer; only the row's text is cut",
    )
    max_answer: int = Field(
        128, ge=1, description="maximum number of tokens of the answer, as a part of max_length"
    )
    stop: tuple[str, ...] = Field((_BETWEEN,), description="texts that end a generated answer")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        Template.parse(self.prompt).around("text")
        lead, _ = Template.parse(self.answer).around("mentions")
        if self.is_begun and lead:
            raise ValueError(
                f"prompt {self.prompt!r} and answer {self.answer!r}: after '[' the answer must "
                "begin "
                "with '{mentions}'"
            )
        if self.max_answer >= self.max_length:
            raise ValueError(
                f"max_answer {self.max_answer} and max_length {self.max_length}: the answer must "
                "leave room for a prompt"
            )
        return self

    @property
    def is_begun(self) -> bool:
        """Return whether the prompt ends with the list's opening bracket, which makes an untuned
        model write a list."""
        return self.prompt.endswith(BEGINNING)


@dataclass(frozen=True, slots=True)
class Task:
    options: Options
    kinds: tuple[str, ...]
    shots: tuple[Example, ...] = ()  # training rows in the prompt
    labels: ClassVar[tuple[str, ...]] = ()
    routes: ClassVar = mention_task.ROUTES

    @classmethod
    def fit(
        cls, options: Options, examples: Sequence[Example], train: Sequence[Example] = ()
    ) -> Self:
        return cls(
            options,
            mention_task.kinds_of(examples, train, options.name),
            choose(train, options.num_examples),
        )

    @classmethod
    def restore(cls, options: Options, state: Mapping[str, Any]) -> Self:
        shots = (
            Example(
                "", shot["text"], mentions=tuple(Mention(**mention) for mention in shot["mentions"])
            )
            for shot in state["shots"]
        )
        return cls(options, tuple(state["kinds"]), tuple(shots))

    def state(self) -> dict[str, Any]:
        shots = [
            {"text": shot.text, "mentions": [asdict(mention) for mention in shot.mentions]}
            for shot in self.shots
        ]
        return {"kinds": list(self.kinds), "shots": shots}

    def head(self) -> None:
        return None

    def encode(self, examples: Sequence[Example], tokenizer: Any) -> list[Encoded]:
        """Encode prompt and answer. For a truncated text, the answer lists the remaining
        mentions."""
        prompt_rows = self._prompts(examples, tokenizer)
        remaining = [
            _remaining(example.mentions, prompt.cut_span)
            for example, prompt in zip(examples, prompt_rows, strict=True)
        ]
        answer_ids = self._answer_ids(
            [self._as_json(mentions) for mentions in remaining], tokenizer
        )
        rows = []
        for example, prompt, ids in zip(examples, prompt_rows, answer_ids, strict=True):
            if len(ids) > self.options.max_answer:
                where, limit = example.where or example.id, self.options.max_answer
                raise DataError(
                    f"{where}: the answer with {len(example.mentions)} mentions has {len(ids)} "
                    f"tokens; raise task.max_answer above {limit}"
                )
            rows.append(Encoded(example.id, (*prompt.tokens, *ids), (len(ids),), prompt.truncated))
        return rows

    def loss(self, targets: Sequence[tuple[int, ...]], row_ids: Sequence[str]) -> LanguageModelLoss:
        return LanguageModelLoss(
            np.array([count for (count,) in targets], dtype=np.float64), answer_at_end
        )

    def predict(self, engine: "Engine", examples: Sequence[Example]) -> list[Prediction]:
        prompt_ids = [prompt.tokens for prompt in self._prompts(examples, engine.tokenizer)]
        texts = generate(
            engine, prompt_ids, Sampling(max_tokens=self.options.max_answer, stop=self.options.stop)
        )
        return [self.read(example, text) for example, text in zip(examples, texts, strict=True)]

    def read(self, example: Example, text: str) -> Prediction:
        """Return the prediction that a generated text stands for."""
        answer = json_list.read(BEGINNING + text if self.options.is_begun else text)
        grounding = json_list.ground(
            example.text, answer.items, self.kinds, every=self.options.occurrences == "all"
        )
        figures = {
            "rows": 1.0,
            "invalid": float(answer.outcome == "invalid"),
            "repaired": float(answer.outcome == "repaired"),
            "listed": float(len(answer.items)),
            "dropped": float(grounding.num_dropped),
        }
        return Prediction(
            example.id, (), (), text=text, mentions=grounding.mentions, figures=figures
        )

    def probe(self, engine: "Engine", examples: Sequence[Example]) -> Floats:
        """Return the scores of two answers, since a generated one would hide small differences."""
        answer_ids = self._answer_ids(
            [
                self._as_json(mentions)
                for mentions in ((), (Mention(0, 1, "carcinoma", self.kinds[0]),))
            ],
            engine.tokenizer,
        )
        return engine.score(
            [prompt.tokens for prompt in self._prompts(examples, engine.tokenizer)], answer_ids
        ).astype(np.float64)

    def keep(
        self, predictions: Sequence[Prediction], examples: Sequence[Example]
    ) -> list[Prediction]:
        return mention_task.keep(predictions)

    def results(self, predictions: Sequence[Prediction], examples: Sequence[Example]) -> Tallies:
        return mention_task.tallies(predictions, examples, RATES)

    def score(self, predictions: Sequence[Prediction], examples: Sequence[Example]) -> Metrics:
        return mention_task.score(predictions, examples, self.kinds, RATES)

    def respond(self, predictions: Sequence[Prediction]) -> tuple[MentionsAnswer, ...]:
        return mention_task.respond(predictions)

    def around(self) -> tuple[str, str]:
        """Return the parts of the prompt before and after a row's text, with instruction and
        examples."""
        before, after = Template.parse(self.options.prompt).around("text")
        first, last = Template.parse(self.options.answer).around("mentions")
        examples = [
            f"{before}{shot.text}{after}{first}{self._as_json(shot.mentions)}{last}"
            for shot in self.shots
        ]
        return _BETWEEN.join([*filter(None, [self.options.instruction]), *examples, before]), after

    def _prompts(self, examples: Sequence[Example], tokenizer: Any) -> list[Prompt]:
        options, texts = self.options, [example.text for example in examples]
        if options.num_examples and not self.shots:
            raise ConfigError(
                f"task.num_examples {options.num_examples}: there are no training rows; set it to 0"
            )
        return prompts(
            texts,
            tokenizer,
            around=self.around(),
            max_length=options.max_length,
            answer=options.max_answer,
            keep="start",
        )

    def _as_json(self, mentions: Sequence[Mention]) -> str:
        return json_list.write(mentions, self.kinds).removeprefix(
            BEGINNING if self.options.is_begun else ""
        )

    def _answer_ids(self, lists: Sequence[str], tokenizer: Any) -> list[tuple[int, ...]]:
        if tokenizer.eos_token_id is None:
            raise ConfigError(
                "task extraction: the tokenizer of this base model has no end of sequence, which "
                "must end an answer; choose another base model"
            )
        template, after = Template.parse(self.options.answer), self.around()[1]
        return answers(
            [template.render({"mentions": mentions}) for mentions in lists],
            tokenizer,
            lead=after or "a",
            end=True,
        )


def choose(train: Sequence[Example], num: int) -> tuple[Example, ...]:
    """Choose examples for the prompt: one third without mentions, from the shorter half of the
    texts, in an order that depends on the ids."""
    empty = _shorter([example for example in train if not example.mentions])[: num // 3]
    positive = _shorter([example for example in train if example.mentions])[: num - len(empty)]
    shots = sorted([*positive, *empty], key=_order)
    return tuple(Example("", example.text, mentions=example.mentions) for example in shots)


def _shorter(examples: Sequence[Example]) -> list[Example]:
    median = (
        sorted(len(example.text) for example in examples)[len(examples) // 2] if examples else 0
    )
    return sorted((example for example in examples if len(example.text) <= median), key=_order)


def _order(example: Example) -> str:
    return hashlib.sha256(f"shot\x00{example.id}".encode("utf-8", "surrogatepass")).hexdigest()


def _remaining(mentions: Sequence[Mention], gap: tuple[int, int] | None) -> list[Mention]:
    return [
        mention
        for mention in mentions
        if gap is None or mention.end <= gap[0] or gap[1] <= mention.start
    ]
