"""Mentions by a head that tags each token of an encoder or decoder as B-, I- or O, in windows. It
loads no model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from medray.client.answers import MentionsAnswer
from medray.errors import DataError
from medray.evaluation.bootstrap import Tallies
from medray.evaluation.metrics import Metrics
from medray.tasks.base import mention_task
from medray.tasks.base.protocol import LossInputs, TaskOptions
from medray.tasks.tagging.bio import mentions_of, tag, tags_of, words
from medray.text.windows import TokenWindows, token_windows
from medray.types import Encoded, Example, Floats, Head, Needs, Prediction

if TYPE_CHECKING:
    from torch import Tensor

    from medray.types import Engine


# A token without a tag: a special token, a blank, or one that another window predicts.
_NO_TAG = -100


class Options(TaskOptions):
    NEEDS: ClassVar[Needs] = "token head"
    STUDY_WIDE = ("name", "metric")
    name: Literal["tagging"]
    metric: mention_task.Metric = Field(
        "mention_f1",
        description="metric on the validation split that selects epochs and trials",
    )
    max_length: int = Field(
        512,
        ge=1,
        description="maximum number of tokens of a window, with special tokens",
    )
    window_overlap: int = Field(
        32, ge=0, description="number of tokens that neighboring windows share"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.window_overlap >= self.max_length:
            raise ValueError(
                f"window_overlap {self.window_overlap} and max_length {self.max_length}: the "
                "overlap must be the smaller"
            )
        return self


@dataclass(frozen=True, slots=True)
class TagLoss:
    """Computes the cross-entropy of the tags, as a sum per row."""

    weights: Floats

    def __call__(self, outputs: Any, rows: LossInputs) -> "Tensor":
        import torch
        import torch.nn.functional as F

        owners, places = rows.mask.nonzero(as_tuple=True)  # in the order of the tags
        tags = torch.tensor(
            [tag for target in rows.targets for tag in target], device=rows.mask.device
        )
        losses = F.cross_entropy(
            outputs.logits[owners, places].float(), tags, reduction="none", ignore_index=_NO_TAG
        )
        return losses.new_zeros(len(rows.targets)).index_add(0, owners, losses)


@dataclass(frozen=True, slots=True)
class Task:
    options: Options
    kinds: tuple[str, ...]
    labels: ClassVar[tuple[str, ...]] = ()
    routes: ClassVar = mention_task.ROUTES

    @property
    def tags(self) -> tuple[str, ...]:
        return tags_of(self.kinds)

    @classmethod
    def fit(
        cls, options: Options, examples: Sequence[Example], train: Sequence[Example] = ()
    ) -> Self:
        return cls(options, mention_task.kinds_of(examples, train, options.name))

    @classmethod
    def restore(cls, options: Options, state: Mapping[str, Any]) -> Self:
        return cls(options, tuple(state["kinds"]))

    def state(self) -> dict[str, Any]:
        return {"kinds": list(self.kinds)}

    def head(self) -> Head:
        return Head(self.tags, per_token=True)

    def encode(self, examples: Sequence[Example], tokenizer: Any) -> list[Encoded]:
        """Encode one row per window. Each token's tag is in the one window that predicts it."""
        rows = []
        for example, text in zip(examples, self._windows(examples, tokenizer), strict=True):
            if not text.windows[0]:
                raise DataError(
                    f"{example.where or example.id}: the text has no token; remove the row"
                )
            rows += self._rows(example, text)
        return rows

    def loss(self, targets: Sequence[tuple[int, ...]], row_ids: Sequence[str]) -> TagLoss:
        """Weight each row by its number of tags, and by at least 1, so that every step has a
        weight."""
        return TagLoss(
            np.array(
                [max(1, sum(tag != _NO_TAG for tag in target)) for target in targets],
                dtype=np.float64,
            )
        )

    def predict(self, engine: "Engine", examples: Sequence[Example]) -> list[Prediction]:
        # Rows are matched by position, since a request may repeat an id.
        by_position = [
            replace(example, id=str(at), mentions=()) for at, example in enumerate(examples)
        ]
        texts = self._windows(examples, engine.tokenizer)
        rows = [
            row
            for example, text in zip(by_position, texts, strict=True)
            for row in self._rows(example, text)
        ]
        return self._predict(engine, examples, rows)

    def predict_rows(
        self, engine: "Engine", examples: Sequence[Example], rows: Sequence[Encoded]
    ) -> list[Prediction]:
        if any(row.offsets is None for row in rows):  # in tables of an earlier medray
            return self.predict(engine, examples)
        positions = {example.id: str(at) for at, example in enumerate(examples)}
        by_position = [replace(row, row_id=positions[row.row_id]) for row in rows]
        return self._predict(engine, examples, by_position)

    def _predict(
        self, engine: "Engine", examples: Sequence[Example], rows: Sequence[Encoded]
    ) -> list[Prediction]:
        """Predict from rows whose ids are positions of their examples."""
        if not examples:
            return []
        num_tags = len(self.tags)
        # Only tokens with a tag are read, each in its own window, whose order is that of the text.
        parts: list[list[Floats]] = [[np.zeros((0, num_tags))] for _ in examples]
        offsets: list[list[tuple[int, int]]] = [[] for _ in examples]
        outputs = engine.token_logits([row.tokens for row in rows])
        for row, token_outputs in zip(rows, outputs, strict=True):
            assert row.offsets is not None
            at = int(row.row_id)
            parts[at].append(token_outputs[np.array(row.target, dtype=np.int64) != _NO_TAG])
            offsets[at] += zip(row.offsets[::2], row.offsets[1::2], strict=True)
        predictions = []
        for example, own, own_offsets in zip(examples, parts, offsets, strict=True):
            logits = np.concatenate(own)
            text_words = words(example.text, own_offsets)
            means = np.array(
                [logits[list(word.tokens)].mean(axis=0) for word in text_words]
            ).reshape(-1, num_tags)
            mentions = mentions_of(
                example.text,
                text_words,
                np.exp(means - np.logaddexp.reduce(means, axis=1, keepdims=True)),
                self.tags,
            )
            predictions.append(Prediction(example.id, (), (), mentions=mentions))
        return predictions

    def probe(self, engine: "Engine", examples: Sequence[Example]) -> Floats:
        """Return the mean and the maximum of each tag's output over the first window."""
        outputs = engine.token_logits(
            [text.windows[0] for text in self._windows(examples, engine.tokenizer)]
        )
        return np.array(
            [np.concatenate([rows.mean(axis=0), rows.max(axis=0)]) for rows in outputs],
            dtype=np.float64,
        )

    def keep(
        self, predictions: Sequence[Prediction], examples: Sequence[Example]
    ) -> list[Prediction]:
        return mention_task.keep(predictions)

    def results(self, predictions: Sequence[Prediction], examples: Sequence[Example]) -> Tallies:
        return mention_task.tallies(predictions, examples)

    def score(self, predictions: Sequence[Prediction], examples: Sequence[Example]) -> Metrics:
        return mention_task.score(predictions, examples, self.kinds)

    def respond(self, predictions: Sequence[Prediction]) -> tuple[MentionsAnswer, ...]:
        return mention_task.respond(predictions)

    def _windows(self, examples: Sequence[Example], tokenizer: Any) -> list[TokenWindows]:
        options, texts = self.options, [example.text for example in examples]
        return token_windows(
            texts, tokenizer, max_length=options.max_length, overlap=options.window_overlap
        )

    def _rows(self, example: Example, text: TokenWindows) -> list[Encoded]:
        tags, owners, rows = self._token_tags(example, text), text.owners(), []
        for number, (tokens, places) in enumerate(zip(text.windows, text.places, strict=True)):
            target = tuple(
                tags[place] if place >= 0 and owners[place] == number else _NO_TAG
                for place in places
            )
            offsets = tuple(
                character
                for place, tag in zip(places, target, strict=True)
                if tag != _NO_TAG
                for character in text.offsets[place]
            )
            rows.append(
                Encoded(example.id, tokens, target, text_length=text.length, offsets=offsets)
            )
        return rows

    def _token_tags(self, example: Example, text: TokenWindows) -> list[int]:
        """Return the tag of each token, which is that of its word."""
        text_words, tags = words(example.text, text.offsets), [_NO_TAG] * len(text.offsets)
        for word, place in zip(
            text_words, tag(text_words, example.mentions, self.tags), strict=True
        ):
            for token in word.tokens:
                tags[token] = place
        return tags
