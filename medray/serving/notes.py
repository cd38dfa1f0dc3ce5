"""Guards around a prediction: mask identifiers in a request's texts, and note in the response which
texts are unlike the training data."""

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from medray.client.answers import Citations, MentionAnswer
from medray.evaluation.novelty import Cloud
from medray.serving.service import Conversation
from medray.tasks.base.mention_task import ExtractResponse
from medray.tasks.base.route import InputNote, LabelRequest, TextRequest, TextResponse
from medray.text import identifiers, language
from medray.text.identifiers import Kind, MaskedText

# A text counts as unlike beyond this factor of the length that 99 of 100 training texts keep.
_LENGTH_FACTOR = 1.5
_RARE = 0.01  # a language with a smaller share of the training texts counts as unknown


@dataclass(frozen=True)
class TrainingTexts:
    """Lengths and languages of the texts that a release was trained on."""

    shortest: int  # words; 98 of 100 texts lie within these bounds
    longest: int
    languages: Mapping[str, float]

    @classmethod
    def of(cls, audit: Mapping[str, Any]) -> Self | None:
        """Read them from an audit. A release that was trained elsewhere has none."""
        words, languages = audit.get("words"), audit.get("languages")
        if not words or not languages:
            return None
        total = sum(languages.values())
        return cls(
            words["p1"], words["p99"], {name: count / total for name, count in languages.items()}
        )


def unlike(text: str, training: TrainingTexts) -> tuple[str, ...]:
    """Return a sentence for each way in which a text is unlike the training texts."""
    notes: list[str] = []
    count = len(text.split())
    if count > _LENGTH_FACTOR * training.longest:
        notes.append(
            f"the text has {count} words; 99 of 100 training texts have at most {training.longest}"
        )
    if _LENGTH_FACTOR * count < training.shortest:
        notes.append(
            f"the text has {count} words; 99 of 100 training texts have at least "
            f"{training.shortest}"
        )
    guess = language.guess(text)
    if guess != language.UNKNOWN and training.languages.get(guess, 0.0) < _RARE:
        usual = sorted(
            name
            for name, share in training.languages.items()
            if name != language.UNKNOWN and share >= _RARE
        )
        notes.append(
            f"the text seems to be in language {guess!r}; the training texts are "
            + (f"in {', '.join(map(repr, usual))}" if usual else "not running text")
        )
    return tuple(notes)


def far(distance: float, cloud: Cloud) -> tuple[str, ...]:
    """Return a sentence if a text's embedding is far from those of the training data."""
    if distance <= cloud.limit:
        return ()
    return (
        (
            f"the model reads it as unlike its data: at distance {distance:.2f}, where 99 of 100 "
            f"validation texts lie within {cloud.limit:.2f}"
        ),
    )


# Characters: masking these takes about 3 ms, and a thread costs about 0.1 ms.
_MAX_INLINE = 8_000


@dataclass(frozen=True)
class MaskedRequest:
    """A request whose texts have their identifiers masked, with the original texts."""

    request: TextRequest
    texts: Sequence[str]
    replacements: Sequence[MaskedText]

    def annotate(self, response: TextResponse) -> TextResponse:
        """Return the response with counts of what was masked. Mentions get their positions in the
        original texts."""
        notes = response.notes or (InputNote(),) * len(self.replacements)
        changes: dict[str, object] = {
            "notes": tuple(
                note.model_copy(update={"masked": text.counts})
                for note, text in zip(notes, self.replacements, strict=True)
            )
        }
        if isinstance(response, ExtractResponse):
            changes["predictions"] = tuple(
                replace(answer, mentions=tuple(self._place(number, one) for one in answer.mentions))
                for number, answer in enumerate(response.predictions)
            )
        if isinstance(self.request, LabelRequest) and self.request.citations:
            changes["predictions"] = tuple(
                replace(answer, citations=unmask_citations(answer.citations, text, replacement))
                for answer, text, replacement in zip(
                    response.predictions, self.texts, self.replacements, strict=True
                )
            )
        return response.model_copy(update=changes)

    def _place(self, number: int, mention: MentionAnswer) -> MentionAnswer:
        start, end = self.replacements[number].original(mention.start, mention.end)
        return replace(mention, start=start, end=end, text=self.texts[number][start:end])


def unmask_citations(citations: Citations, text: str, replacement: MaskedText) -> Citations:
    """Return the citations of a masked text with their places in the original text."""
    sentences = []
    for sentence in citations.sentences:
        start, end = replacement.original(sentence.start, sentence.end)
        sentences.append(replace(sentence, start=start, end=end, text=text[start:end]))
    return replace(citations, sentences=tuple(sentences))


async def mask(request: TextRequest) -> MaskedRequest:
    texts = request.texts
    replacements = await _mask_all(texts)
    changes = (
        {"text": replacements[0].text}
        if request.text is not None
        else {"inputs": tuple(one.text for one in replacements)}
    )
    return MaskedRequest(request.model_copy(update=changes), texts, replacements)


async def mask_text(text: str) -> MaskedText:
    (replacement,) = await _mask_all([text])
    return replacement


@dataclass(frozen=True)
class MaskedConversation:
    """A conversation whose messages have their identifiers masked."""

    conversation: Conversation
    counts: dict[Kind, int]
    text: str  # of the last message, before
    replacement: MaskedText  # of it

    def unmask(self, citations: Citations) -> Citations:
        return unmask_citations(citations, self.text, self.replacement)


async def mask_conversation(conversation: Conversation) -> MaskedConversation:
    replacements = await _mask_all([message.content for message in conversation.messages])
    messages = tuple(
        replace(message, content=text.text)
        for message, text in zip(conversation.messages, replacements, strict=True)
    )
    counts: Counter[Kind] = Counter()
    for text in replacements:
        counts.update(text.counts)
    return MaskedConversation(
        replace(conversation, messages=messages),
        dict(counts),
        conversation.messages[-1].content,
        replacements[-1],
    )


async def _mask_all(texts: Sequence[str]) -> list[MaskedText]:
    """Mask texts, long ones in a thread, so that the event loop stays free."""
    if sum(map(len, texts)) <= _MAX_INLINE:
        return list(map(identifiers.mask, texts))
    return await asyncio.to_thread(lambda: list(map(identifiers.mask, texts)))


def flag(
    request: TextRequest, response: TextResponse, training: TrainingTexts | None
) -> TextResponse:
    """Return the response with notes on texts that are unlike the training texts. Without training
    texts, return it unchanged."""
    if training is None:
        return response
    texts = request.texts
    notes = response.notes or (InputNote(),) * len(texts)
    new_notes = (flag_text(text, note, training) for text, note in zip(texts, notes, strict=True))
    return response.model_copy(update={"notes": tuple(new_notes)})


def flag_text(text: str, note: InputNote, training: TrainingTexts | None) -> InputNote:
    """Return the note with the ways in which a text is unlike the training texts."""
    if training is None:
        return note
    return note.model_copy(
        update={"unlike_training": (*unlike(text, training), *note.unlike_training)}
    )
