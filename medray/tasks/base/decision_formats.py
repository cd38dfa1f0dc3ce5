"""Requests to a service that answers typed questions, and its responses, in the two common
formats: `/v1/decisions` and `/v1/systemone`. Pure; a response may be hostile."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medray.types import DecisionFormat, Question

_TOLERANCE = 0.02  # of a sum of probabilities, which services round
_MOST_TOKENS = 10**12
_SYSTEMONE_TYPES = {"predicate": "noul", "choice": "choice", "score": "score"}
OptionShares = tuple[float, ...]


@dataclass(frozen=True, slots=True)
class DecisionContent:
    """The content of a response: per question the probabilities of its options in their order, or
    None where the service refused to answer."""

    shares: tuple[OptionShares | None, ...]
    input_tokens: int
    output_tokens: int


def request_body(
    form: DecisionFormat, model: str, text: str, questions: Sequence[Question]
) -> dict[str, Any]:
    if form == "decisions":
        return {
            "model": model,
            "input": text,
            "questions": [decisions_question(question) for question in questions],
        }
    return {
        "model": model,
        "state": text,
        "questions": {question.name: _systemone_question(question) for question in questions},
    }


def decisions_question(question: Question) -> dict[str, Any]:
    """Return a question as `/v1/decisions` takes it. Only its instructions can describe the options
    of a predicate."""
    lines = [question.instructions]
    if question.kind == "predicate":
        lines += [
            f"{option.value}: {option.description}"
            for option in question.options
            if option.description
        ]
    fields: dict[str, Any] = {
        "type": question.kind,
        "name": question.name,
        "instructions": "\n".join(lines),
    }
    if question.kind == "predicate":
        return fields
    options, value = ("choices", "value") if question.kind == "choice" else ("levels", "label")
    return fields | {
        options: [
            {value: option.value}
            | ({"description": option.description} if option.description else {})
            for option in question.options
        ]
    }


def _systemone_question(question: Question) -> dict[str, Any]:
    descriptions = {option.value: option.description or None for option in question.options}
    criteria: Any = descriptions
    if question.kind == "score":
        criteria = [
            f"{value}: {description}" if description else value
            for value, description in descriptions.items()
        ]
    elif not any(descriptions.values()):
        criteria = None if question.kind == "predicate" else list(descriptions)
    return {
        "type": _SYSTEMONE_TYPES[question.kind],
        "instructions": question.instructions,
        "criteria": criteria,
    }


def read_response(
    form: DecisionFormat, content: Any, questions: Sequence[Question]
) -> DecisionContent:
    """Return the content of a response. A ValueError says what is wrong, and repeats nothing of
    the response."""
    body = _mapping(content, "the response")
    answers: Any = body.get("answers")
    if form == "systemone":
        answers = _mapping(answers, "answers")
        if answers.keys() != {question.name for question in questions}:
            raise ValueError("answers are not those to the questions")
        answers = [answers[question.name] for question in questions]
    if not isinstance(answers, list) or len(answers) != len(questions):
        count = f"{len(answers)}" if isinstance(answers, list) else "no list of"
        raise ValueError(f"{count} answers to {len(questions)} questions")
    read = _decisions_shares if form == "decisions" else _systemone_shares
    usage = _mapping(body.get("usage"), "usage")
    return DecisionContent(
        tuple(
            _read_answer(place, _mapping(answer, f"answers.{place}"), question, read)
            for place, (answer, question) in enumerate(zip(answers, questions, strict=True))
        ),
        _count(usage.get("input_tokens")),
        _count(usage.get("output_tokens")),
    )


def _read_answer(
    place: int,
    answer: Mapping[str, Any],
    question: Question,
    read: Callable[[Mapping[str, Any], Question], Sequence[Any]],
) -> OptionShares | None:
    if answer.get("name") not in (None, question.name):
        raise ValueError(f"answers.{place}: has the name of another question")
    if answer.get("type") == "refusal":
        return None
    try:
        shares = [_share(value) for value in read(answer, question)]
    except (LookupError, TypeError):
        raise ValueError(
            f"answers.{place}: is no answer of a {question.kind} with a probability for each option"
        ) from None
    if not abs(sum(shares) - 1) <= _TOLERANCE:
        raise ValueError(f"answers.{place}: the probabilities do not sum to 1")
    return tuple(share / sum(shares) for share in shares)


def _decisions_shares(answer: Mapping[str, Any], question: Question) -> Sequence[Any]:
    if answer["type"] != question.kind:
        raise LookupError
    if question.kind == "predicate":
        return _both(answer["probability"])
    keys: Sequence[Any] = (
        question.values if question.kind == "choice" else range(len(question.options))
    )
    shares = {
        (type(entry["value"]), entry["value"]): entry["probability"]
        for entry in answer["probabilities"]
    }
    return _in_order(shares, [(type(key), key) for key in keys], len(answer["probabilities"]))


def _systemone_shares(answer: Mapping[str, Any], question: Question) -> Sequence[Any]:
    if answer["type"] != _SYSTEMONE_TYPES[question.kind]:
        raise LookupError
    if question.kind == "predicate":
        return _both(answer["noul"])
    shares = _mapping(answer["probabilities"], "probabilities")
    places = map(str, range(len(question.options)))
    keys = question.values if question.kind == "choice" else tuple(places)
    return _in_order(shares, keys, len(shares))


def _both(share: Any) -> Sequence[Any]:
    return (share, 1 - _share(share))


def _in_order(shares: Mapping[Any, Any], keys: Sequence[Any], count: int) -> Sequence[Any]:
    if count != len(keys):
        raise LookupError
    return [shares[key] for key in keys]


def _share(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise TypeError
    return float(value)


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _MOST_TOKENS:
        raise ValueError("usage: has no numbers of input_tokens and output_tokens")
    return value


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{where}: is no object")
    return value
