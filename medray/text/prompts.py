"""Encodes prompts and answers as token ids. A prompt's own words are never cut, and an answer has
the same tokens after every prompt."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from medray.errors import ConfigError
from medray.text.windows import Keep, TokenList, count_special, cut, encode, readable


class NoRoomError(ConfigError):
    """A prompt, or a question, leaves no room for its text."""


@dataclass(frozen=True, slots=True)
class Prompt:
    tokens: tuple[int, ...]
    truncated: bool
    cut_span: tuple[int, int] | None = None  # start and end of the characters that were cut


def prompts(
    texts: Sequence[str],
    tokenizer: Any,
    *,
    around: tuple[str, str],
    max_length: int,
    answer: int,
    keep: Keep,
) -> list[Prompt]:
    """Encode each text between the two literals `around`, in at most `max_length` tokens with room
    for an answer of `answer` tokens."""
    if not texts:
        return []
    before, after = around
    room = readable(max_length, tokenizer) - answer
    # The whole prompt is encoded at once, so that words at the seams get their usual tokens.
    encodings = encode((before + text + after for text in texts), tokenizer, offsets=True)
    num_before, num_after = count_special(encodings)
    rows = []
    for text, encoding in zip(texts, encodings, strict=True):
        # Some tokenizers close every text, but an answer follows here.
        has_text = len(encoding) > num_before + num_after
        ids = encoding.ids[: len(encoding) - num_after] if has_text else []
        if len(ids) <= room:
            rows.append(Prompt(tuple(ids), truncated=False))
            continue
        last, offsets = len(before) + len(text), encoding.offsets
        inside = [
            place >= num_before and len(before) < end <= last
            for place, (_, end) in enumerate(offsets[: len(ids)])
        ]
        body = [token for token, is_text in zip(ids, inside, strict=True) if is_text]
        left = room - (len(ids) - len(body))
        if left < 1:
            raise NoRoomError(
                f"max_length: {max_length} leaves no room for text besides the prompt's "
                f"{len(ids) - len(body)} tokens and the answer's {answer}; increase it"
            )
        start = inside.index(True)
        places = cut(list(range(len(body))), left, keep)
        gap = start + next((place for place, number in enumerate(places) if place != number), left)
        cut_span = (
            offsets[gap][0] - len(before),
            offsets[gap + len(body) - left - 1][1] - len(before),
        )
        tokens = (*ids[:start], *(body[place] for place in places), *ids[start + len(body) :])
        rows.append(Prompt(tokens, truncated=True, cut_span=cut_span))
    return rows


def answers(texts: Sequence[str], tokenizer: Any, *, lead: str, end: bool) -> list[tuple[int, ...]]:
    """Encode each answer as it is spelled after `lead`, the last words of the prompt. `end` adds
    the end of sequence."""
    before = _plain([lead], tokenizer)[0]
    rows = []
    for whole, alone in zip(
        _plain([lead + text for text in texts], tokenizer), _plain(texts, tokenizer), strict=True
    ):
        # If the seam is inside a token, the answer is encoded alone.
        ids = (
            whole[len(before) :]
            if whole[: len(before)] == before and len(whole) > len(before)
            else alone
        )
        rows.append((*ids, tokenizer.eos_token_id) if end else tuple(ids))
    return rows


def _plain(texts: Sequence[str], tokenizer: Any) -> list[TokenList]:
    encoded = tokenizer(
        list(texts), add_special_tokens=False, split_special_tokens=True, verbose=False
    )
    ids: list[TokenList] = encoded["input_ids"]
    return ids
