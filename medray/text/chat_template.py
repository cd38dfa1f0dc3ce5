"""Encodes conversations as token ids, with the model's chat template or a plain one, and shortens
them to fit.

The content of a turn is always text: only the template itself adds its marks, even if a turn spells
one."""

import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from jinja2 import TemplateError

from medray.errors import ConfigError
from medray.text.prompts import answers
from medray.text.windows import cut
from medray.types import Message, TokenIds

_TurnIds = dict[tuple[str, str], TokenIds]  # tokens per turn: its text and what precedes it
TemplateKind = Literal["auto", "chat", "plain"]
_TURN = re.compile("\ue000(\\d+)\ue001")  # the placeholder of a turn while a template is rendered
_HEADINGS = {"system": "", "user": "### Instruction:\n", "assistant": "### Response:\n"}
_MOST_CHARACTERS = 64  # per token of room: a longer turn would be cut anyway after its encoding
_DAY = datetime(2024, 7, 26)  # for templates with the date: rows and probes must stay the same


@dataclass(frozen=True, slots=True)
class ChatTokens:
    """A conversation as token ids."""

    tokens: TokenIds
    spans: tuple[tuple[int, int], ...]  # of the assistant's turns, each with its end
    truncated: bool


@dataclass(frozen=True, slots=True)
class _Segment:
    ids: TokenIds
    turn: int | None = None  # the turn that these tokens belong to; None for the template


@dataclass(frozen=True)
class ChatEncoder:
    """Encodes conversations for one tokenizer."""

    tokenizer: Any
    template: TemplateKind
    _literals: dict[str, TokenIds] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.template == "chat" and not self.tokenizer.chat_template:
            raise ConfigError(
                "task.template chat: the tokenizer of this base model has no chat template; "
                "allowed: auto, plain"
            )

    @property
    def is_plain(self) -> bool:
        return self.template == "plain" or not self.tokenizer.chat_template

    def prompt(self, messages: Sequence[Message], room: int) -> ChatTokens:
        """Encode messages up to the start of the assistant's answer, in at most `room` tokens.

        If they do not fit, the oldest turns are dropped, then the last turn is cut. The system
        prompt is never cut.
        """
        whole = together(messages)
        turns = [_readable(turn, room) for turn in whole]
        is_shortened = turns != whole
        ids: _TurnIds = {}  # each turn is encoded once, though the template is rendered repeatedly
        segments = self._segments(turns, ids)
        if _length(segments) > room and (begins := _beginnings(turns)):
            # Fewer turns are fewer tokens, so bisection finds the longest conversation that fits.
            first = bisect_left(
                begins[:-1],
                True,
                key=lambda at: _length(self._segments(_since(turns, at), ids)) <= room,
            )
            turns, is_shortened = _since(turns, begins[first]), True
            segments = self._segments(turns, ids)
        excess = _length(segments) - room
        if excess > 0:
            segments = _cut_last(segments, excess, len(turns) - 1, room)
        return self._to_tokens(segments, turns, truncated=is_shortened or excess > 0)

    def answer(self, text: str) -> TokenIds:
        """Encode an answer that follows a prompt, with the end of its turn."""
        lead = "\n" if self.is_plain else self.fill([Message("user", "a")], is_open=True)[-1:]
        (ids,) = answers([text.strip()], self.tokenizer, lead=lead or "a", end=False)
        return (*ids, *self._ends())

    def _segments(self, turns: Sequence[Message], turn_ids: _TurnIds) -> list[_Segment]:
        return (
            self._plain(turns, turn_ids) if self.is_plain else self._from_template(turns, turn_ids)
        )

    def _from_template(self, turns: Sequence[Message], turn_ids: _TurnIds) -> list[_Segment]:
        """Render the template with placeholders, then encode its parts and the turns separately."""
        marks = [Message(turn.role, f"\ue000{number}\ue001") for number, turn in enumerate(turns)]
        parts = _TURN.split(self.fill(marks, is_open=True))
        numbers = list(map(int, parts[1::2]))
        words = self._words(
            [
                (turns[number].content, before[-1:] or "\n")
                for before, number in zip(parts[::2], numbers, strict=False)
            ],
            turn_ids,
        )
        segments = [_Segment(self._literal(parts[0]))]
        for number, ids, literal in zip(numbers, words, parts[2::2], strict=True):
            segments += [_Segment(ids, number), _Segment(self._literal(literal))]
        places = [segment.turn for segment in segments if segment.turn is not None]
        if places != list(range(len(turns))):
            raise ConfigError(
                "task.template: the chat template of this base model does not render every turn "
                "once and in order; use plain"
            )
        return segments

    def fill(self, turns: Sequence[Message], *, is_open: bool) -> str:
        """Render the template, with the start of an answer at the end if `is_open`. A template that
        prints the date gets a fixed one."""

        def render(messages: Sequence[Message]) -> str:
            plain = [{"role": turn.role, "content": turn.content} for turn in messages]
            text: str = self.tokenizer.apply_chat_template(
                plain,
                tokenize=False,
                add_generation_prompt=is_open,
                strftime_now=_DAY.strftime,
                date_string=_DAY.strftime("%d %b %Y"),
                enable_thinking=False,  # else the answer would begin inside an open thought
            )
            return text

        try:
            return render(turns)
        except TemplateError as err:
            reason = err
        try:  # some templates have no system role: its text then begins the first turn
            if len(turns) > 1 and turns[0].role == "system":
                return render(
                    [Message("user", f"{turns[0].content}\n\n{turns[1].content}"), *turns[2:]]
                )
            raise reason
        except TemplateError as err:
            raise ConfigError(
                "task.template: the chat template of this base model rejects the conversation: "
                f"{err}; use plain"
            ) from None

    def _plain(self, turns: Sequence[Message], turn_ids: _TurnIds) -> list[_Segment]:
        end = (self._end_of_sequence(),)
        words = self._words([(turn.content, "\n") for turn in turns], turn_ids)
        segments = [_Segment(self._beginning())]
        for number, (turn, ids) in enumerate(zip(turns, words, strict=True)):
            close = end if turn.role == "assistant" else ()
            segments += [_Segment(self._literal(_HEADINGS[turn.role])), _Segment(ids, number)]
            segments.append(_Segment((*close, *self._literal("\n\n"))))
        return [*segments, _Segment(self._literal("### Response:\n"))]

    def _to_tokens(
        self, segments: Sequence[_Segment], turns: Sequence[Message], *, truncated: bool
    ) -> ChatTokens:
        tokens: list[int] = []
        spans = []
        special = self._special_ids()
        for at, segment in enumerate(segments):
            start = len(tokens)
            tokens += segment.ids
            if segment.turn is not None and turns[segment.turn].role == "assistant":
                following = segments[at + 1].ids[:1]
                spans.append(
                    (start, len(tokens) + (1 if following and following[0] in special else 0))
                )
        return ChatTokens(tuple(tokens), tuple(spans), truncated)

    def _ends(self) -> TokenIds:
        """Return the tokens that end the assistant's turn: the template's mark, and the end of
        sequence if it is a different token."""
        end = self._end_of_sequence()
        if self.is_plain:
            return (end,)
        turns = [Message("user", "a"), Message("assistant", "\ue0000\ue001")]
        following = self._literal(_TURN.split(self.fill(turns, is_open=False))[-1])[:1]
        return (
            (*following, *(() if following == (end,) else (end,)))
            if following and following[0] in self._special_ids()
            else (end,)
        )

    def _end_of_sequence(self) -> int:
        if self.tokenizer.eos_token_id is None:
            raise ConfigError(
                "the tokenizer of this base model has no end-of-sequence token, so an answer could "
                "not end; use another base model"
            )
        return int(self.tokenizer.eos_token_id)

    def _special_ids(self) -> set[int]:
        extra_tokens = self.tokenizer.added_tokens_decoder
        return {
            *self.tokenizer.all_special_ids,
            *(number for number, token in extra_tokens.items() if token.special),
        }

    def _beginning(self) -> TokenIds:
        """Return the special tokens that this tokenizer puts before a text."""
        encoded = self.tokenizer("a", return_special_tokens_mask=True)
        start = encoded["special_tokens_mask"].index(0)
        return tuple(encoded["input_ids"][:start])

    def _literal(self, text: str) -> TokenIds:
        if text not in self._literals:
            self._literals[text] = (
                tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"]) if text else ()
            )
        return self._literals[text]

    def _words(self, turns: Sequence[tuple[str, str]], turn_ids: _TurnIds) -> list[TokenIds]:
        """Return the tokens of each turn, whose first token depends on the text before it."""
        for lead in {lead for _, lead in turns}:
            texts = [
                text
                for text in dict.fromkeys(text for text, before in turns if before == lead)
                if (text, lead) not in turn_ids
            ]
            if texts:
                turn_ids.update(
                    zip(
                        [(text, lead) for text in texts],
                        answers(texts, self.tokenizer, lead=lead, end=False),
                        strict=True,
                    )
                )
        return [turn_ids[turn] for turn in turns]


def together(messages: Sequence[Message]) -> list[Message]:
    """Return the messages with all system messages joined into the first turn. The last message
    must be the user's."""
    if not messages or messages[-1].role != "user":
        raise ConfigError(
            "the last message must be the user's, found "
            f"{messages[-1].role if messages else 'none'}"
        )
    system = "\n\n".join(
        message.content.strip()
        for message in messages
        if message.role == "system" and message.content.strip()
    )
    turns = [
        Message(message.role, message.content.strip())
        for message in messages
        if message.role != "system"
    ]
    return [*([Message("system", system)] if system else []), *turns]


def _readable(turn: Message, room: int) -> Message:
    """Return a turn without its middle part if it is far too long: encoding a megabyte takes
    seconds."""
    most, text = _MOST_CHARACTERS * room, turn.content
    if len(text) <= most:
        return turn
    if turn.role == "system":
        raise ConfigError(
            f"max_length: {room} tokens for a prompt are too few beside a system prompt of "
            f"{len(text)} characters; shorten the system prompt"
        )
    return Message(turn.role, text[: most // 2] + text[-(most // 2) :])


def _beginnings(turns: Sequence[Message]) -> list[int]:
    """Return the positions where a shortened conversation may begin: never with an answer whose
    question is missing."""
    start = 1 if turns[0].role == "system" else 0
    return [at for at in range(start + 1, len(turns)) if turns[at].role != "assistant"]


def _since(turns: Sequence[Message], at: int) -> list[Message]:
    return [*(turn for turn in turns[:1] if turn.role == "system"), *turns[at:]]


def _cut_last(segments: Sequence[_Segment], excess: int, last: int, room: int) -> list[_Segment]:
    """Cut the middle of the last turn, since the request is usually at its start or its end."""
    body = next(list(segment.ids) for segment in segments if segment.turn == last)
    if len(body) <= excess:
        raise ConfigError(
            f"max_length: {room} tokens for a prompt are {excess - len(body) + 1} too few beside "
            "the system prompt and the template; shorten the system prompt"
        )
    rest = tuple(cut(body, len(body) - excess, "both"))
    return [_Segment(rest, last) if segment.turn == last else segment for segment in segments]


def _length(segments: Sequence[_Segment]) -> int:
    return sum(len(segment.ids) for segment in segments)
