"""The rows of an encoder that answers typed questions: `question [SEP] option [SEP] text`, a row
for each option; and the wording of questions and options. It loads no model."""

from collections.abc import Iterable, Sequence
from typing import Any

from medray.errors import ConfigError
from medray.tasks.base.questions import SameOptionsError
from medray.text.prompts import NoRoomError, Prompt
from medray.text.windows import Keep, count_special, cut, encode, readable
from medray.types import Branch, Example, Question, TokenIds

_WORDS = {"true": "yes", "false": "no"}  # how an answer to a predicate is spelled


def whole_rows(
    examples: Sequence[Example], tokenizer: Any, *, max_length: int, keep: Keep
) -> list[tuple[Prompt, tuple[Branch, ...]]]:
    """Return an empty prompt per example and a branch per question, whose continuations are rows.

    A text is cut to fit the longest option of a question, so that all options read the same part
    of it, whatever the other questions are."""
    special = count_special(encode(["a"], tokenizer))
    if not special[1]:
        raise ConfigError(
            "task decisions: the tokenizer of this encoder ends a text without a separator; choose "
            "another base model"
        )
    leads = _leads(
        dict.fromkeys(question for example in examples for question in example.questions),
        tokenizer,
        special[0],
    )
    limit = readable(max_length, tokenizer)
    rows = []
    for example, encoding in zip(
        examples, encode([example.text for example in examples], tokenizer), strict=True
    ):
        ids = encoding.ids
        body, end = ids[special[0] : len(ids) - special[1]], ids[len(ids) - special[1] :]
        branches, is_cut = [], False
        for question in example.questions:
            longest = max(map(len, leads[question]))
            room = limit - longest - len(end)
            if body and room < 1:
                raise NoRoomError(
                    f"max_length: {max_length} leaves no room for text besides a question and an "
                    f"option of {longest} tokens; increase it"
                )
            part = cut(body, room, keep) if len(body) > room else body
            is_cut = is_cut or len(part) < len(body)
            branches.append(Branch((), tuple((*lead, *part, *end) for lead in leads[question])))
        rows.append((Prompt((), is_cut), tuple(branches)))
    return rows


def _leads(
    questions: Iterable[Question], tokenizer: Any, num_before: int
) -> dict[Question, tuple[TokenIds, ...]]:
    """Return what precedes the text in the row of each option of each question."""
    leads = {}
    for question in questions:
        texts = [question.instructions, *_option_texts(question)]
        asks, *options = [encoding.ids for encoding in encode(texts, tokenizer)]
        leads[question] = tuple((*asks, *ids[num_before:]) for ids in options)
        check_distinct(question, leads[question])
    return leads


def _option_texts(question: Question) -> list[str]:
    return [
        spelling(question, option.value) + (f": {option.description}" if option.description else "")
        for option in question.options
    ]


def wording(question: Question) -> str:
    """Return a decoder's question: the instructions, and a line per described option. The lines of
    a choice are sorted, so that the order of its options changes nothing."""
    lines = [
        f"{spelling(question, option.value)}: {option.description}"
        for option in question.options
        if option.description
    ]
    return "\n".join(
        [question.instructions, *(lines if question.kind == "score" else sorted(lines))]
    )


def spelling(question: Question, value: str) -> str:
    """Return how an option is spelled for a model."""
    return _WORDS[value] if question.kind == "predicate" else value


def check_distinct(question: Question, options: Sequence[TokenIds]) -> None:
    """Raise where two options of a question are the same tokens."""
    value_of: dict[TokenIds, str] = {}
    for value, ids in zip(question.values, options, strict=True):
        if ids in value_of:
            raise SameOptionsError(
                f"question {question.name!r:.60}: options {value_of[ids]!r:.60} and "
                f"{value!r:.60} are the same tokens for this base model; rename one of them"
            )
        value_of[ids] = value
