"""Typed questions and their right answers in data files, with the words of the wire formats:
`choices`, `levels` and `criteria` are options, and a `noul` is a predicate."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from medray.data.formats.base.parsing import lines
from medray.data.frames import check_text
from medray.errors import DataError, suggest
from medray.types import PREDICATE_VALUES, Question, QuestionKind, QuestionOption

_KINDS: dict[str, QuestionKind] = {
    "predicate": "predicate",
    "noul": "predicate",
    "choice": "choice",
    "score": "score",
}
_OPTIONS = ("options", "choices", "levels", "criteria")
_KEYS = ("name", "type", "instructions", *_OPTIONS)
_MOST_OPTIONS = 255
# What a table may say for an option of a predicate.
_TRUTH = {"true": 0, "yes": 0, "1": 0, "false": 1, "no": 1, "0": 1}


def has_questions(rows: Iterable[Mapping[str, Any]]) -> bool:
    """Return whether every row has a state and questions about it."""
    all_rows = list(rows)
    return bool(all_rows) and all(
        "state" in row and isinstance(row.get("questions"), list | dict) for row in all_rows
    )


def read_questions(path: Path) -> tuple[Question, ...]:
    """Read questions from a YAML file: a mapping of names to questions, or a list of them."""
    try:
        # All values are texts; YAML would read an option `no` as false, and `1` as a number.
        content = yaml.load("".join(lines(path)), Loader=yaml.BaseLoader)
    except yaml.YAMLError as err:
        reason = " ".join(str(err).split())
        raise DataError(f"{path}: not valid YAML: {reason:.200}; correct it") from None
    return parse_questions(content, str(path))


def parse_questions(raw: Any, where: str) -> tuple[Question, ...]:
    """Return the questions of a mapping by name, or of a list. One without a name is called
    q1, q2 and so on by its position."""
    if isinstance(raw, list):
        pairs: list[tuple[Any, Any]] = [
            (
                (item.get("name") if isinstance(item, dict) else None) or f"q{number}",
                item,
            )
            for number, item in enumerate(raw, 1)
        ]
    elif isinstance(raw, dict):
        pairs = list(raw.items())
    else:
        pairs = []
    if not pairs:
        raise DataError(
            f"{where}: questions must be a mapping of names to questions, or a list of them; give "
            "at least one"
        )
    names = [name for name, _ in pairs]
    if twice := next((name for at, name in enumerate(names) if name in names[:at]), None):
        raise DataError(f"{where}: two questions have the name {twice!r:.60}; rename one")
    return tuple(_question(name, item, where) for name, item in pairs)


def check_questions(raw: Any, where: str) -> tuple[Question, ...]:
    """Return questions that Python code gives, as objects or in the form of data files."""
    is_list = isinstance(raw, Iterable) and not isinstance(raw, str | Mapping)
    items = list(map(_as_in_files, raw)) if is_list else raw
    return parse_questions(items, where) if items else ()


def _as_in_files(item: Any) -> Any:
    if not isinstance(item, Question):
        return item
    fields = asdict(item)
    options = fields["options"]
    return {
        "name": fields["name"],
        "type": fields["kind"],
        "instructions": fields["instructions"],
        "options": list(options) if isinstance(options, tuple) else options,
    }


def _question(name: Any, raw: Any, where: str) -> Question:
    if not isinstance(name, str) or not name.strip():
        raise DataError(f"{where}: the name {name!r:.60} of a question must be text; quote it")
    where = f"{where}: question {name!r:.60}"
    if not isinstance(raw, dict):
        raise DataError(f"{where}: must be an object with type and instructions")
    if wrong := next((key for key in raw if key not in _KEYS), None):
        raise DataError(f"{where}: key {wrong!r:.60} is not known; {suggest(wrong, _KEYS)}")
    kind = _KINDS.get(raw["type"]) if isinstance(raw.get("type"), str) else None
    if kind is None:
        raise DataError(
            f"{where}: type {raw.get('type')!r:.60} is not known; "
            f"{suggest(str(raw.get('type')), tuple(_KINDS))}"
        )
    lists = [raw[key] for key in _OPTIONS if raw.get(key) is not None]
    if len(lists) > 1:
        raise DataError(f"{where}: give its options once, by one of {', '.join(_OPTIONS)}")
    options = tuple(_options(lists[0], where)) if lists else ()
    is_described = any(option.description for option in options)
    instructions = raw.get("instructions", "" if is_described else None)
    if not isinstance(instructions, str) or not (instructions.strip() or is_described):
        raise DataError(
            f"{where}: instructions must be a text; it may lack where options have descriptions"
        )
    if kind == "predicate":
        options = _predicate(options, where)
    elif not 2 <= len(options) <= _MOST_OPTIONS:
        raise DataError(f"{where}: has {len(options)} options; a {kind} needs 2 to {_MOST_OPTIONS}")
    values = [option.value for option in options]
    if twice := next((value for at, value in enumerate(values) if value in values[:at]), None):
        raise DataError(f"{where}: the option {twice!r:.60} occurs twice; remove one")
    for text in (name, instructions, *values, *(option.description for option in options)):
        check_text(text, f"{where}: a text")
    return Question(name.strip(), kind, instructions.strip(), options)


def _options(raw: Any, where: str) -> Iterator[QuestionOption]:
    if isinstance(raw, dict):
        items: list[tuple[Any, Any]] = list(raw.items())
    elif isinstance(raw, list):
        items = [
            (item.get("value", item.get("label")), item.get("description"))
            if isinstance(item, dict)
            else (item, None)
            for item in raw
        ]
    else:
        raise DataError(f"{where}: options must be a list, or a mapping of values to descriptions")
    for value, description in items:
        text = _value(value)
        if not text or not isinstance(description, str | None):
            raise DataError(
                f"{where}: option {value!r:.60} must be a text, with a text as description or none"
            )
        yield QuestionOption(text, (description or "").strip())


def _value(value: Any) -> str:
    """Return the text of an option. YAML reads some words and digits as other types."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value).strip() if isinstance(value, str | int | float) else ""


def _predicate(options: Sequence[QuestionOption], where: str) -> tuple[QuestionOption, ...]:
    descriptions = {option.value: option.description for option in options}
    if wrong := next((value for value in descriptions if value not in PREDICATE_VALUES), None):
        raise DataError(
            f"{where}: the options of a predicate are true and false, found {wrong!r:.60}; use "
            "type choice for others"
        )
    return tuple(QuestionOption(value, descriptions.get(value, "")) for value in PREDICATE_VALUES)


def parse_answers(
    questions: Sequence[Question], raw: Any, where: str
) -> tuple[tuple[float, ...], ...]:
    """Return the right answer to each question, from a mapping by name or a list in the order of
    the questions."""
    if isinstance(raw, list):
        if len(raw) != len(questions):
            raise DataError(
                f"{where}: has {len(raw)} answers to {len(questions)} questions; give one for "
                "each, or null"
            )
        raw = {question.name: value for question, value in zip(questions, raw, strict=True)}
    if not isinstance(raw, dict):
        raise DataError(f"{where}: the answers must be a mapping of names to answers, or a list")
    names = [question.name for question in questions]
    if wrong := next((name for name in raw if name not in names), None):
        raise DataError(f"{where}: no question has the name {wrong!r:.60}; {suggest(wrong, names)}")
    return tuple(
        _shares(question, raw.get(question.name), f"{where}: question {question.name!r:.60}")
        for question in questions
    )


def _shares(question: Question, raw: Any, where: str) -> tuple[float, ...]:
    """Return the share of each option: of one answer, of votes, or of probabilities."""
    if raw is None or raw == "":
        return ()
    if isinstance(raw, Mapping):
        votes = [0.0] * len(question.options)
        for value, count in raw.items():
            if isinstance(count, bool) or not isinstance(count, int | float) or not count >= 0:
                raise DataError(f"{where}: {value!r:.60} has {count!r:.60}; give a number from 0")
            votes[_place(question, value, where)] += count
        total = sum(votes)
        if not 0 < total < float("inf"):
            raise DataError(f"{where}: the shares have the sum {total:g}; give one above 0")
        return tuple(vote / total for vote in votes)
    if question.kind == "predicate" and isinstance(raw, int | float) and 0 <= raw <= 1:
        return (float(raw), 1 - float(raw))
    if question.kind == "score" and isinstance(raw, float) and math.isfinite(raw):
        return _between_levels(question, raw, where)
    place = _place(question, raw, where)
    return tuple(float(at == place) for at in range(len(question.options)))


def _between_levels(question: Question, score: float, where: str) -> tuple[float, ...]:
    """Return the shares of a score that may lie between two levels."""
    shares = [0.0] * len(question.options)
    if _value(score) in question.values:
        shares[question.values.index(_value(score))] = 1.0
        return tuple(shares)
    level = math.floor(score)
    shares[_place(question, level, where)] = 1 - (score - level)
    if score > level:
        shares[_place(question, level + 1, where)] = score - level
    return tuple(shares)


def _place(question: Question, value: Any, where: str) -> int:
    """Return the position of an option; a level may also be given by its number, from 0."""
    text = _value(value)
    if text in question.values:
        return question.values.index(text)
    if question.kind == "predicate" and text.casefold() in _TRUTH:
        return _TRUTH[text.casefold()]
    if question.kind == "score" and text.isdecimal() and int(text) < len(question.options):
        return int(text)
    raise DataError(f"{where}: answer {value!r:.60} is no option; {suggest(text, question.values)}")
