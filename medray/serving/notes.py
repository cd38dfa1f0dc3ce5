"""What is done to a request's texts before they are answered, and what is said of them with the
answer."""

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from medray.client import MentionAnswer
from medray.evaluation.novelty import Cloud
from medray.serving.service import Conversation
from medray.tasks.base.mention_task import ExtractResponse
from medray.tasks.base.route import InputNote, TextRequest, TextResponse
from medray.text import identifiers, language
from medray.text.identifiers import Kind, MaskedText

# times the length that 99 of 100 texts keep below, or above: a text at the edge is still like them
_BEYOND = 1.5
_RARE = 0.01  # share of the texts in a language below which it counts as unknown to the release


@dataclass(frozen=True)
class TrainingTexts:
    shortest: int  # words; 98 of 100 texts lie between the two
    longest: int
    languages: Mapping[str, float]

    @classmethod
    def of(cls, audit: Mapping[str, Any]) -> Self | None:
        """None where nothing was kept of the data: trained elsewhere, or before this was."""
        words, languages = audit.get("words"), audit.get("languages")
        if not words or not languages:
            return None
        total = sum(languages.values())
        return cls(
            words["p1"], words["p99"], {name: count / total for name, count in languages.items()}
        )


def unlike(text: str, training: TrainingTexts) -> tuple[str, ...]:
    """A sentence for each way in which it differs."""
    notes: list[str] = []
    count = len(text.split())
    if count > _BEYOND * training.longest:
        notes.append(
            f"{count} words are more than the release was trained on: 99 of 100 texts had at most "
            f"{training.longest}"
        )
    if _BEYOND * count < training.shortest:
        notes.append(
            f"{count} words are fewer than the release was trained on: 99 of 100 texts had at "
            f"least {training.shortest}"
        )
    guess = language.guess(text)
    if guess != language.UNKNOWN and training.languages.get(guess, 0.0) < _RARE:
        usual = sorted(
            name
            for name, share in training.languages.items()
            if name != language.UNKNOWN and share >= _RARE
        )
        notes.append(
            f"it reads like language {guess!r}, the training texts like "
            + (", ".join(map(repr, usual)) or "no running text")
        )
    return tuple(notes)


def far(distance: float, cloud: Cloud) -> tuple[str, ...]:
    """The same of how the model reads it."""
    if distance <= cloud.limit:
        return ()
    return (
        (
            f"the model reads it as unlike its data: at distance {distance:.2f}, where 99 of 100 "
            f"validation texts lie within {cloud.limit:.2f}"
        ),
    )


_MOST_INLINE = 8_000  # characters: masking them takes about 3 ms, a thread costs a tenth of one


@dataclass(frozen=True)
class MaskedRequest:
    request: TextRequest
    texts: Sequence[str]
    masked: Sequence[MaskedText]

    def annotate(self, response: TextResponse) -> TextResponse:
        """The answer with what was masked; places of mentions are those of the texts that were
        sent."""
        notes = response.notes or (InputNote(),) * len(self.masked)
        changes: dict[str, object] = {
            "notes": tuple(
                note.model_copy(update={"masked": text.counts})
                for note, text in zip(notes, self.masked, strict=True)
            )
        }
        if isinstance(response, ExtractResponse):
            changes["predictions"] = tuple(
                replace(answer, mentions=tuple(self._place(number, one) for one in answer.mentions))
                for number, answer in enumerate(response.predictions)
            )
        return response.model_copy(update=changes)

    def _place(self, number: int, mention: MentionAnswer) -> MentionAnswer:
        start, end = self.masked[number].original(mention.start, mention.end)
        return replace(mention, start=start, end=end, text=self.texts[number][start:end])


async def mask(request: TextRequest) -> MaskedRequest:
    texts = request.texts
    masked = await _mask_all(texts)
    changes = (
        {"text": masked[0].text}
        if request.text is not None
        else {"inputs": tuple(one.text for one in masked)}
    )
    return MaskedRequest(request.model_copy(update=changes), texts, masked)


async def mask_conversation(conversation: Conversation) -> tuple[Conversation, dict[Kind, int]]:
    masked = await _mask_all([message.content for message in conversation.messages])
    messages = tuple(
        replace(message, content=text.text)
        for message, text in zip(conversation.messages, masked, strict=True)
    )
    counts: Counter[Kind] = Counter()
    for text in masked:
        counts.update(text.counts)
    return replace(conversation, messages=messages), dict(counts)


async def _mask_all(texts: Sequence[str]) -> list[MaskedText]:
    """Long texts are masked in a thread, so that other requests are answered meanwhile."""
    if sum(map(len, texts)) <= _MOST_INLINE:
        return list(map(identifiers.mask, texts))
    return await asyncio.to_thread(lambda: list(map(identifiers.mask, texts)))


def flag(
    request: TextRequest, response: TextResponse, training: TrainingTexts | None
) -> TextResponse:
    """The answer with what is unlike the training; the answer itself where nothing is known of the
    training data."""
    if training is None:
        return response
    texts = request.texts
    notes = response.notes or (InputNote(),) * len(texts)
    changed = (
        note.model_copy(
            update={"unlike_training": (*unlike(text, training), *note.unlike_training)}
        )
        for text, note in zip(texts, notes, strict=True)
    )
    return response.model_copy(update={"notes": tuple(changed)})
