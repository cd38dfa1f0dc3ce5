"""Texts become the tokens that transformers gives them, whole or in parts, whatever the tokenizer
and the text."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from support import tiny, tokenizer_kinds

from medray.errors import ConfigError
from medray.text.prompts import prompts
from medray.text.windows import Keep, cut, pieces, slide, token_windows

TEXTS = [
    "",
    " ",
    "a",
    "fever and glucose in renal failure",
    "a title\r\n\r\nan abstract\tof two lines\r\n",
    "🩺 fever 👩🏽‍⚕️🧬 of 39 °C",
    "Łódź, ﬁbrosis, e\u0301tat, ½ µg/ml, İstanbul",
    "発熱と頭痛 حمى شديدة",
    "\ufeffBOM, \x00 and \u2028 lines\u200b",
    "it spells [SEP], [CLS], </s>, <|im_end|>, <|endoftext|> and <pad>",
    "x" * 3000,
    "long " * 2000,
    tiny.text(random.Random(0), 900),
]
LENGTH = 24


@pytest.fixture(params=tokenizer_kinds.KINDS)
def tokenizer(request: pytest.FixtureRequest) -> Any:
    tokenizer = tokenizer_kinds.KINDS[request.param]()
    tokenizer.model_max_length = 10**30
    return tokenizer


@dataclass(frozen=True)
class Tokens:
    """A text as transformers encodes it, in three parts."""

    before: list[int]
    body: list[int]
    after: list[int]
    offsets: list[tuple[int, int]]  # of the body

    @property
    def whole(self) -> list[int]:
        return self.before + self.body + self.after

    @property
    def room(self) -> int:
        return LENGTH - len(self.before) - len(self.after)

    def around(self, body: Sequence[int]) -> tuple[int, ...]:
        return (*self.before, *body, *self.after)


def encode(texts: Sequence[str], tokenizer: Any) -> list[Tokens]:
    encoded = tokenizer(
        list(texts),
        split_special_tokens=True,
        return_special_tokens_mask=True,
        return_offsets_mapping=True,
        verbose=False,
    )
    rows = []
    for ids, mask, offsets in zip(
        encoded["input_ids"], encoded["special_tokens_mask"], encoded["offset_mapping"], strict=True
    ):
        start, count = (mask.index(0), mask.count(0)) if 0 in mask else (len(mask), 0)
        end = start + count
        assert not any(mask[start:end])
        rows.append(Tokens(ids[:start], ids[start:end], ids[end:], offsets[start:end]))
    return rows


@pytest.mark.parametrize("keep", ["start", "end", "both"])
def test_a_text_is_whole_or_cut_between_its_special_tokens(tokenizer: Any, keep: Keep) -> None:
    rows = pieces(TEXTS, tokenizer, max_length=LENGTH, keep=keep, overlap=None)
    for row, text in zip(rows, encode(TEXTS, tokenizer), strict=True):
        assert row.truncated == (len(text.whole) > LENGTH)
        body = cut(text.body, text.room, keep) if row.truncated else text.body
        assert row.tokens == [text.around(body)]
    assert any(row.truncated for row in rows)


def test_windows_of_a_text_have_its_special_tokens(tokenizer: Any) -> None:
    rows = pieces(TEXTS, tokenizer, max_length=LENGTH, keep="start", overlap=5)
    for row, text in zip(rows, encode(TEXTS, tokenizer), strict=True):
        bodies = slide(text.body, text.room, 5) if len(text.body) > text.room else [text.body]
        assert row.tokens == [text.around(body) for body in bodies]


def test_windows_for_tags_know_the_characters_of_each_token(tokenizer: Any) -> None:
    rows = token_windows(TEXTS, tokenizer, max_length=LENGTH, overlap=5)
    for row, text in zip(rows, encode(TEXTS, tokenizer), strict=True):
        places = list(range(len(text.body)))
        windows = slide(places, text.room, 5) if len(places) > text.room else [places]
        assert row.offsets == text.offsets
        assert row.windows == [
            text.around([text.body[place] for place in window]) for window in windows
        ]
        before, after = [-1] * len(text.before), [-1] * len(text.after)
        assert row.places == [(*before, *window, *after) for window in windows]


@pytest.mark.parametrize("around", [("", ""), ("fever: ", "\nan answer:")])
@pytest.mark.parametrize("max_length", [40, 10**6])
def test_a_prompt_ends_without_special_tokens_and_only_its_text_is_cut(
    tokenizer: Any, around: tuple[str, str], max_length: int
) -> None:
    before, after = around
    room = max_length - 2
    rows = prompts(TEXTS, tokenizer, around=around, max_length=max_length, answer=2, keep="start")
    wholes = encode([before + text + after for text in TEXTS], tokenizer)
    for row, text, whole in zip(rows, TEXTS, wholes, strict=True):
        ids = [*whole.before, *whole.body] if whole.body else []
        assert row.truncated == (len(ids) > room)
        last = len(before) + len(text)
        places = [
            place for place, (_, end) in enumerate(whole.offsets) if len(before) < end <= last
        ]
        num_cut = max(0, len(ids) - room)
        gap = places[len(places) - num_cut :] if num_cut else []
        body = [token for place, token in enumerate(whole.body) if place not in set(gap)]
        assert row.tokens == ((*whole.before, *body) if ids else ())
        if gap:
            assert row.cut_span == (
                whole.offsets[gap[0]][0] - len(before),
                whole.offsets[gap[-1]][1] - len(before),
            )


def test_a_tokenizer_in_pure_python_is_an_error_with_a_way_out() -> None:
    class SlowTokenizer:
        model_max_length = 512

    with pytest.raises(ConfigError, match="SlowTokenizer: this tokenizer is pure"):
        pieces(["a text"], SlowTokenizer(), max_length=LENGTH, keep="start", overlap=None)
