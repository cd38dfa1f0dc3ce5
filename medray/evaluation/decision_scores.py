"""Figures of answers to typed questions, with the texts as units: a text's questions are resampled
together.

Each text has counts per group of questions (a question, or a kind of questions), from whose sums
all figures follow. Pure."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from medray.errors import DataError
from medray.evaluation.bootstrap import Sums, Tallies
from medray.evaluation.metrics import Counts, Metrics, ratio
from medray.types import Example, Floats, Prediction, Question, QuestionAnswer

Grouping = Callable[[Question], str]
Columns = dict[str, Floats]  # of counts, one value per text
NUM_BINS = 15  # of the expected calibration error
_LEAST = float(np.finfo(np.float64).eps)  # a mistake with full confidence costs 36
_HITS, _TRUE, _PREDICTIONS = "hits of", "rows of", "answers of"  # a value, in names of counts
# The counts of a score: the truth, the answer, their squares and their products.
_MOMENTS = ("truth", "answer", "truth²", "answer²", "product")


def tally(
    predictions: Sequence[Prediction], examples: Sequence[Example], group: Grouping
) -> Tallies:
    """Count each text's answers. Questions without a right answer are left out."""
    assert [row.row_id for row in predictions] == [example.id for example in examples]
    columns: Columns = defaultdict(partial(np.zeros, len(examples)))
    values: dict[str, dict[str, None]] = {}  # of each group
    scores: dict[str, None] = {}  # groups of scores
    has_thresholds = False
    for row, (prediction, example) in enumerate(zip(predictions, examples, strict=True)):
        if not example.answers:
            continue
        for question, shares, answer in zip(
            example.questions, example.answers, prediction.answers, strict=True
        ):
            if not shares:
                continue
            name = group(question)
            values.setdefault(name, {}).update(dict.fromkeys(question.values))
            counts = _counts(np.array(shares), answer, question)
            if question.kind == "score":
                scores[name] = None
                counts |= _level_counts(np.array(shares), answer)
            for what, value in counts.items():
                columns[f"{name}: {what}"][row] += value
            has_thresholds |= answer.threshold is not None or answer.abstained
    if not values:
        raise DataError("no row has an answer to score; check the split of the data")
    figures = _figures(values, list(scores), has_thresholds=has_thresholds)
    return Tallies(tuple(example.id for example in examples), dict(columns), figures)


def score(
    predictions: Sequence[Prediction], examples: Sequence[Example], group: Grouping
) -> Metrics:
    """Return the pooled metrics, and those of each group of questions."""
    tallies = tally(predictions, examples, group)
    whole = tallies.whole()
    per_group: dict[str, dict[str, float]] = defaultdict(dict)
    for name, value in whole.items():
        figure, _, of = name.partition(" of ")
        if of:
            per_group[of][figure] = value
    for name in per_group:
        per_group[name]["support"] = float(tallies.counts[f"{name}: questions"].sum())
    values = {name: value for name, value in whole.items() if " of " not in name}
    return Metrics(values, len(examples), dict(per_group))


def _counts(shares: Floats, answer: QuestionAnswer, question: Question) -> dict[str, float]:
    probabilities = np.array(answer.probabilities)
    truth = question.values[int(shares.argmax())]
    at = question.values.index(answer.value)
    hit = float(truth == answer.value and not answer.is_refusal)
    counts = {
        "questions": 1.0,
        "hits": hit,
        "log loss": float(-(shares * np.log(np.clip(probabilities, _LEAST, 1.0))).sum()),
        "brier": float(((probabilities - shares) ** 2).sum()),
        **bin_counts(float(probabilities[at]), hit),
        f"{_TRUE} {truth}": 1.0,
    }
    if not answer.is_refusal:
        counts[f"{_PREDICTIONS} {answer.value}"] = 1.0
    if hit:
        counts[f"{_HITS} {truth}"] = 1.0
    if not answer.abstained:
        counts |= {"answers": 1.0, "answer hits": hit}
    return counts


def _level_counts(shares: Floats, answer: QuestionAnswer) -> dict[str, float]:
    levels = np.arange(len(shares))
    truth, level = float(shares.argmax()), float(answer.values.index(answer.value))
    moments = (truth, level, truth**2, level**2, truth * level)
    return {
        "levels": 1.0,
        "distance": abs(float(shares @ levels) - answer.score),
        **dict(zip(_MOMENTS, moments, strict=True)),
    }


def _figures(
    values: Mapping[str, Sequence[str] | Mapping[str, None]],
    scores: Sequence[str],
    *,
    has_thresholds: bool,
) -> dict[str, Callable[[Sums], Floats]]:
    """Return the pooled figures, then those of each group, named `FIGURE of GROUP`. A pooled F1 or
    kappa is the mean of those of the groups."""
    groups = list(values)
    figures: dict[str, Callable[[Sums], Floats]] = {
        "f1_macro": lambda sums: _mean([_f1(sums, name, list(values[name])) for name in groups]),
        **_shares(groups),
        "ece": lambda sums: _ece(sums, groups),
    }
    if scores:
        figures["score_mae"] = _ratio("distance", "levels", scores)
        figures["score_kappa"] = lambda sums: _mean([_kappa(sums, name) for name in scores])
    if has_thresholds:
        figures["coverage"] = _ratio("answers", "questions", groups)
        figures["answered_accuracy"] = _ratio("answer hits", "answers", groups)
    for name in groups:
        figures[f"f1_macro of {name}"] = partial(_f1, name=name, values=list(values[name]))
        figures |= {f"{what} of {name}": figure for what, figure in _shares([name]).items()}
        if name in scores:
            figures[f"score_mae of {name}"] = _ratio("distance", "levels", [name])
            figures[f"score_kappa of {name}"] = partial(_kappa, name=name)
        if has_thresholds:
            figures[f"coverage of {name}"] = _ratio("answers", "questions", [name])
            figures[f"answered_accuracy of {name}"] = _ratio("answer hits", "answers", [name])
    return figures


def _shares(groups: Sequence[str]) -> dict[str, Callable[[Sums], Floats]]:
    parts = {"accuracy": "hits", "log_loss": "log loss", "brier": "brier"}
    return {name: _ratio(part, "questions", groups) for name, part in parts.items()}


def _ratio(part: str, whole: str, groups: Sequence[str]) -> Callable[[Sums], Floats]:
    return lambda sums: ratio(_total(sums, groups, part), _total(sums, groups, whole))


def _total(sums: Sums, groups: Sequence[str], what: str) -> Floats:
    """Return the sum of a count over groups; a group may lack it."""
    return _add(sums, [f"{name}: {what}" for name in groups])


def _add(sums: Sums, names: Sequence[str]) -> Floats:
    zeros = np.zeros_like(next(iter(sums.values())))
    total: Floats = sum((sums[name] for name in names if name in sums), zeros)
    return total


def _mean(columns: Sequence[Floats]) -> Floats:
    mean: Floats = np.mean(columns, axis=0)
    return mean


def _f1(sums: Sums, name: str, values: Sequence[str]) -> Floats:
    hits, true, predictions = (
        np.stack([_total(sums, [name], f"{what} {value}") for value in values], axis=-1)
        for what in (_HITS, _TRUE, _PREDICTIONS)
    )
    return Counts(hits, true, predictions).average("f1_macro")


def bin_counts(confidence: float, hit: float) -> dict[str, float]:
    """Return the counts of an answer for its expected calibration error."""
    place = min(int(confidence * NUM_BINS), NUM_BINS - 1)
    return {f"confidence {place}": confidence, f"hits {place}": hit}


def calibration_error(total: Callable[[str], Floats], num_answers: Floats) -> Floats:
    """Return the expected calibration error, from sums of `bin_counts`."""
    gaps = [
        np.abs(total(f"confidence {place}") - total(f"hits {place}")) for place in range(NUM_BINS)
    ]
    return ratio(np.sum(gaps, axis=0), num_answers)


def _ece(sums: Sums, groups: Sequence[str]) -> Floats:
    return calibration_error(
        lambda what: _total(sums, groups, what), _total(sums, groups, "questions")
    )


def _kappa(sums: Sums, name: str) -> Floats:
    """Return Cohen's kappa with quadratic weights: 1 minus the squared distance of truth and
    answer, relative to that of independent ones. It is 0 where all levels are the same."""
    num = _total(sums, [name], "levels")
    truth, level, truth2, level2, product = (
        ratio(_total(sums, [name], what), num) for what in _MOMENTS
    )
    distance, by_chance = truth2 + level2 - 2 * product, truth2 + level2 - 2 * truth * level
    kappa: Floats = np.where(by_chance > 0, 1 - ratio(distance, by_chance), 0.0)
    return kappa
