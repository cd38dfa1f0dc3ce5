import logging
import warnings
from itertools import pairwise

import pytest
from support.tokenizer_kinds import bert, decoder, minilm

from medray.errors import ConfigError
from medray.text.windows import pieces, slide


@pytest.fixture(
    params=[bert, lambda: decoder(bos=False), lambda: decoder(bos=True), minilm],
    ids=["bert", "decoder", "bos", "minilm"],
)
def tokenizer(request):
    return request.param()


def cut(tokenizer, texts, max_length=512, keep="start", overlap=None):
    return pieces(texts, tokenizer, max_length=max_length, keep=keep, overlap=overlap)


def letters(tokenizer, tokens):
    return tokenizer.decode(tokens, skip_special_tokens=True).replace(" ", "")


def test_a_short_text_reads_as_the_tokenizer_reads_it(tokenizer):
    texts = ["a b c", "d", "e f g h i j"]
    result = cut(tokenizer, texts)
    assert [list(text.tokens[0]) for text in result] == [
        tokenizer(text)["input_ids"] for text in texts
    ]
    assert not any(text.truncated for text in result)


def test_a_text_cannot_spell_a_special_token(tokenizer):
    plain, *_ = cut(tokenizer, ["a"])
    ours = set(plain.tokens[0]) & set(tokenizer.all_special_ids)
    for special in tokenizer.all_special_tokens:
        result = cut(tokenizer, [f"a {special} b", "c"])
        for text in result:
            inside = text.tokens[0][1:-1]
            assert not set(inside) & (set(tokenizer.all_special_ids) - {tokenizer.unk_token_id})
            assert (
                set(text.tokens[0]) & set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
                == ours
            )


def test_a_text_of_exactly_the_length_is_whole_and_one_more_token_is_cut(tokenizer):
    (whole,) = cut(tokenizer, ["a b c d"])
    length = len(whole.tokens[0])
    assert cut(tokenizer, ["a b c d"], max_length=length)[0] == whole
    (shorter,) = cut(tokenizer, ["a b c d"], max_length=length - 1)
    assert shorter.truncated
    assert len(shorter.tokens[0]) == length - 1


@pytest.mark.parametrize(
    ("keep", "left"), [("start", "abcde"), ("end", "vwxyz"), ("both", "abcyz")]
)
def test_keep_says_which_part_of_a_long_text_survives_and_special_tokens_stay(keep, left):
    tokenizer = bert()
    (text,) = cut(tokenizer, [" ".join("abcdefghijklmnopqrstuvwxyz")], max_length=7, keep=keep)
    assert letters(tokenizer, text.tokens[0]) == left
    assert (text.tokens[0][0], text.tokens[0][-1], len(text.tokens[0])) == (2, 3, 7)


def test_a_decoder_keeps_its_first_token_and_gets_no_other():
    tokenizer = decoder(bos=True)
    (text,) = cut(tokenizer, ["abcdefgh"], max_length=4, keep="end")
    assert text.tokens[0][0] == tokenizer.bos_token_id
    assert letters(tokenizer, text.tokens[0]) == "fgh"


def test_windows_overlap_and_the_last_is_moved_back_to_the_end():
    tokenizer = bert()
    (text,) = cut(tokenizer, [" ".join("abcdefghijk")], max_length=7, overlap=2)
    assert [letters(tokenizer, tokens) for tokens in text.tokens] == ["abcde", "defgh", "ghijk"]
    (text,) = cut(tokenizer, [" ".join("abcdefghijkl")], max_length=7, overlap=2)
    assert [letters(tokenizer, tokens) for tokens in text.tokens] == [
        "abcde",
        "defgh",
        "ghijk",
        "hijkl",
    ]
    assert not text.truncated
    assert {(tokens[0], tokens[-1]) for tokens in text.tokens} == {(2, 3)}


@pytest.mark.parametrize("length", range(11, 30))
@pytest.mark.parametrize("overlap", [0, 3, 9])
def test_windows_are_full_share_at_least_the_overlap_and_lose_no_token(length, overlap):
    result = slide(list(range(length)), 10, overlap)
    assert {token for window in result for token in window} == set(range(length))
    for window, following in pairwise(result):
        assert len(window) == len(following) == 10
        assert len(set(window) & set(following)) >= overlap


def test_a_length_without_room_for_text_is_refused():
    with pytest.raises(
        ConfigError, match="max_length: 2 leaves no room for text besides special tokens"
    ):
        cut(bert(), ["a b"], max_length=2)
    with pytest.raises(
        ConfigError,
        match="max_length: 6 leaves no room for text besides special tokens and window_overlap 4",
    ):
        cut(bert(), ["a b c d e f g h"], max_length=6, overlap=4)


def test_a_long_text_is_read_without_a_warning_about_its_length(tokenizer, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
        warnings.simplefilter("error")
        cut(tokenizer, ["a " * 700], max_length=100)
    assert not caplog.records


def test_a_base_model_that_reads_less_than_max_length_gets_less_and_a_warning():
    tokenizer = bert()
    tokenizer.model_max_length = 5
    with pytest.warns(
        UserWarning,
        match="max_length 512: the tokenizer of this base model allows 5, which is used",
    ):
        (text,) = cut(tokenizer, ["a b c d e f"])
    assert len(text.tokens[0]) == 5


def test_no_texts_are_no_pieces():
    assert cut(bert(), []) == []
