"""Replays a search over the histories of trials that were trained to their end. Trials are
deterministic, so it stops and chooses as a study on this many slots would, without training."""

import heapq
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medray.records import Evaluation
from medray.study.search import Proposal, Search

Histories = Callable[[Mapping[str, Any]], Sequence[Evaluation]]  # by the settings of a trial


@dataclass(frozen=True)
class Replay:
    """The cost of a search, and its winner."""

    epochs: float  # of all trials together
    duration: float  # in epochs of one trial: the time of the last slot
    winner: Mapping[str, Any]  # settings
    best: Evaluation  # of the winner


def replay(
    search: Search,
    histories: Histories,
    *,
    num_slots: int,
    figures: Callable[[Mapping[str, float]], Mapping[str, float]] = lambda metrics: metrics,
) -> Replay:
    """Run the search on slots that train an epoch per unit of time. `figures` selects the metrics
    that the search sees."""
    running: list[tuple[float, int, Proposal, Iterator[Evaluation], Evaluation]] = []
    evaluations: list[tuple[Proposal, Evaluation]] = []
    now, num_started = 0.0, 0

    def start() -> None:
        nonlocal num_started
        proposal = search.next()
        if proposal is None:
            return
        search.begin(_name(proposal), proposal)
        rows = iter(histories(proposal.settings))
        first = next(rows)
        heapq.heappush(running, (now + first.epochs, num_started, proposal, rows, first))
        num_started += 1

    for _ in range(num_slots):
        start()
    while running:
        now, number, proposal, rows, evaluation = heapq.heappop(running)
        evaluations.append((proposal, evaluation))
        goes_on = search.observe(_name(proposal), evaluation.epochs, figures(evaluation.metrics))
        following = next(rows, None) if goes_on else None
        if following is not None:
            end = now + following.epochs - evaluation.epochs
            heapq.heappush(running, (end, number, proposal, rows, following))
            continue
        search.complete(_name(proposal), proposal.settings, is_failure=False)
        start()
    winner, best = max(evaluations, key=lambda pair: pair[1].metrics[search.metric])
    return Replay(sum(search.epochs.values()), now, winner.settings, best)


def _name(proposal: Proposal) -> str:
    return f"{proposal.base}-{proposal.number}"
