"""The first pages of a report: what was asked, what won, by how much, and against what."""

from collections.abc import Sequence

from medray.evaluation import leaderboard_files
from medray.evaluation.leaderboard import Entry, Pairing
from medray.evaluation.metrics import higher_is_better
from medray.reports.blocks import Block, Chart, Details, Fact, Figure, Key, Section, Table, Text
from medray.reports.charts import NARROW, WIDE, Bar, intervals
from medray.reports.study_data import (
    StudyData,
    axis_name,
    base_name,
    between,
    compact,
    count,
    duration,
    listed,
    setting,
    short,
    signed,
)
from medray.reports.svg import Drawing


def headline(data: StudyData) -> str:
    best, method = data.board.best, f" with {data.winner.method}" if data.winner else ""
    by = f"{base_name(best.base_model)}{method} won"
    value = best.test.get(data.metric)
    if value is None:
        return (
            f"{by}: {data.metric_name} {short(best.validation.get(data.metric))} on validation "
            "rows. Test rows were not judged."
        )
    sure = (
        f" (95 % interval {between(best.test_interval.low, best.test_interval.high)})"
        if best.test_interval
        else ""
    )
    means = f", the mean of {best.seeds.num_seeds} seeds" if best.seeds else ""
    return (
        f"{by}: {data.metric_name} {short(value)}{sure} on "
        f"{count(data.board.num_rows['test'], 'test row')}{means}."
    )


def said(data: StudyData) -> list[str]:
    """How it was chosen, and what that is worth."""
    board, best = data.board, data.board.best
    ran = [entry for entry in data.trials if entry.validation]
    names = listed(list(dict.fromkeys(base_name(base.source) for base in data.config.base_models)))
    sentences = [
        f"{best.name} was chosen among {count(len(ran), 'trial')} of {names} by its "
        f"{data.metric_name} on"
        f" {board.num_rows['validation']:,} validation rows: "
        f"{short(best.validation.get(data.metric))} at epoch {best.epoch}."
    ]
    if others := [name for name in board.tied if name != board.winner]:
        sentences.append(
            f"A tie: validation rows cannot tell it from {listed(others)}; {board.tie_break}."
        )
    for pair in references(data):
        sentences.append(verdict(pair))
    if best.test and best.test_interval is None:
        sentences.append(
            f"{data.metric_name} has no interval here, so nothing says whether two models can be "
            "told apart by it."
        )
    if board.num_openings > 1:
        sentences.append(
            f"The labels of these test rows were read {board.num_openings} times: the more often, "
            "the less they are a test."
        )
    failed = sum(entry.status == "failed" for entry in data.trials)
    if failed:
        sentences.append(f"{count(failed, 'trial')} failed; the leaderboard has the reason.")
    return sentences


def references(data: StudyData) -> list[Pairing]:
    """What the winner has to beat, on test rows."""
    known = {entry.name for entry in data.references}
    return [pair for pair in data.board.comparisons if pair.split == "test" and pair.other in known]


def verdict(pair: Pairing) -> str:
    found = pair.comparison
    if pair.is_tie:
        spread = (
            f"{signed(found.difference)}, 95 % interval {signed(found.low)} to {signed(found.high)}"
        )
        return f"The test rows cannot tell it from {pair.other} (difference {spread})."
    if found.difference < 0:
        return (
            f"On the same test rows {pair.other} is better by {short(-found.difference)} (95 % "
            f"interval {between(-found.high, -found.low)})."
        )
    return (
        f"On the same test rows it is better than {pair.other} by {short(found.difference)} (95 % "
        f"interval {between(found.low, found.high)})."
    )


def facts(data: StudyData) -> list[Fact]:
    best = data.board.best
    test, low = best.test.get(data.metric), best.test_interval
    figure = Fact(
        short(best.validation.get(data.metric) if test is None else test),
        f"{'test' if test is not None else 'validation'} {data.metric_name}",
        f"{between(low.low, low.high)}, 95 % interval" if low else "",
    )
    made = [figure]
    if pairs := references(data):
        hardest = min(pairs, key=lambda pair: pair.comparison.difference)
        made.append(
            Fact(
                signed(hardest.comparison.difference), f"against {hardest.other}", _spread(hardest)
            )
        )
    seconds = sum(entry.seconds or 0.0 for entry in data.trials)
    made.append(
        Fact(
            str(len(data.trials)),
            "trials" if len(data.trials) != 1 else "trial",
            f"{duration(seconds)} of training in all",
        )
    )
    if best.ms_per_row is not None:
        made.append(
            Fact(
                f"{best.ms_per_row:.3g} ms",
                "per text",
                f"{compact(best.num_parameters)} parameters",
            )
        )
    return made


def asked(data: StudyData) -> Section:
    config, board = data.config, data.board
    labels = (
        listed(data.winner.labels) if data.winner else listed(list(data.audit.get("labels", {})))
    )
    rows = data.audit.get("splits") or board.num_rows
    source = getattr(config.data.format, "path", "")
    search = config.search
    axes = list(dict.fromkeys(path for base in config.base_models for path in config.space(base)))
    lines = [
        ("Task", config.task.name + (f": {labels}" if labels else "")),
        ("Chosen by", f"{data.metric_name} on validation rows"),
        ("Data", f"{config.data.format.name}" + (f", {source}" if source else "")),
        ("Rows", ", ".join(f"{side} {number:,}" for side, number in rows.items())),
        ("Base models", listed([base.source for base in config.base_models])),
        (
            "Search",
            f"{search.algorithm}, scheduler {search.scheduler}, {count(len(data.trials), 'trial')}",
        ),
        (
            "Searched",
            listed([axis_name(path) for path in axes])
            if axes
            else "nothing: every setting was given",
        ),
    ]
    return Section(
        "asked",
        "What was asked",
        [Table("What was asked of the study", (), lines, left=frozenset({0, 1}))],
    )


def leaderboard(data: StudyData) -> Section:
    entries = [entry for entry in data.board.entries if data.metric in entry.validation]
    top = 1.0 if higher_is_better(data.metric) else None
    bars = [_bar(data, entry, "validation") for entry in entries[:_MOST_BARS]]
    judged = [_bar(data, entry, "test") for entry in entries if data.metric in entry.test]
    blocks: list[Block] = []
    if judged:
        title = f"{data.metric_name} on test rows"
        blocks.append(Figure([_drawn("leaderboard-test", title, judged, top)], _TEST, keys(data)))
    title = f"{data.metric_name} on validation rows"
    blocks.append(
        Figure(
            [_drawn("leaderboard-validation", title, bars, top)],
            f"{title}, by which was chosen: {_which(len(entries))}at its best epoch.",
        )
    )
    blocks.append(_table(data))
    if data.metric in data.board.best.test:
        sentences = leaderboard_files.sentences(data.board, data.analysis)
        blocks.append(
            Details(
                "The leaderboard in sentences",
                [Text(sentence, is_note=True) for sentence in sentences],
            )
        )
    failed = [entry for entry in data.trials if entry.error]
    if failed:
        rows = [[entry.name, entry.base_model, entry.error or ""] for entry in failed]
        blocks.append(
            Table(
                "Trials that failed, and why",
                ["trial", "base model", "reason"],
                rows,
                left=frozenset({0, 1, 2}),
            )
        )
    return Section("leaderboard", "Leaderboard", blocks)


def _which(num_entries: int) -> str:
    return (
        f"the best {_MOST_BARS} of {num_entries}, each "
        if num_entries > _MOST_BARS
        else "each trial "
    )


_MOST_BARS = 24
_TEST = (
    "The best of each base model and the references, judged once on test rows that nothing was "
    "chosen by. Dot: test figure with its"
    " 95 % bootstrap interval; open: validation figure."
)


def against(data: StudyData) -> Section | None:
    """Before and after: the winner minus what it started from, the simple methods and the
    runner-up, on the same rows."""
    pairs = [pair for pair in data.board.comparisons if pair.split == "test"]
    if not pairs:
        return None
    bars = [
        Bar(
            f"minus {pair.other}",
            pair.comparison.difference,
            pair.comparison.low,
            pair.comparison.high,
            series=None if pair.is_tie else 0,
            shown=f"{signed(pair.comparison.difference)}  ({_spread(pair)})",
            brief=signed(pair.comparison.difference),
        )
        for pair in pairs
    ]
    title = f"Winner's {data.metric_name} minus that of others, on the same test rows"
    rows = [[f"{pair.other}, {pair.split}", *_compared(pair)] for pair in data.board.comparisons]
    caption = (
        "Differences on the same resamples of the rows, so that what is hard for both cancels out"
    )
    untuned = any("untuned" in pair.other for pair in pairs)
    note = (
        ""
        if untuned
        else (
            " No untuned base model is among them: one whose head has still to be trained has no "
            "answer."
        )
    )
    drawn = _drawn("differences", title, bars, None, zero=True)
    heads = ["winner against", "difference", "95 % interval", "p", "verdict"]
    return Section(
        "against",
        "Before and after",
        [
            Figure(
                [drawn],
                f"{title}, with the 95 % interval of the difference. Grey: the rows cannot tell "
                f"the two apart.{note}",
            ),
            Table(caption, heads, rows, left=frozenset({0, 4})),
        ],
    )


def _compared(pair: Pairing) -> list[str]:
    found = pair.comparison
    verdict = (
        "cannot be told apart" if pair.is_tie else "better" if found.difference > 0 else "worse"
    )
    return [signed(found.difference), _spread(pair), f"{found.p_value:.3f}", verdict]


def _spread(pair: Pairing) -> str:
    return f"{signed(pair.comparison.low)} to {signed(pair.comparison.high)}"


def _bar(data: StudyData, entry: Entry, split: str) -> Bar:
    test, validation = entry.test.get(data.metric), entry.validation.get(data.metric)
    spread = entry.test_interval if split == "test" else None
    value = test if split == "test" else validation
    is_winner = entry.name == data.board.winner
    return Bar(
        f"{entry.name} · winner" if is_winner else entry.name,
        value,
        spread.low if spread else None,
        spread.high if spread else None,
        other=validation if split == "test" else None,
        series=data.series(entry),
        is_strong=is_winner,
        shown=short(value) + (f"  ({between(spread.low, spread.high)})" if spread else ""),
        brief=short(value),
    )


def _drawn(
    name: str, title: str, bars: Sequence[Bar], top: float | None, *, zero: bool = False
) -> Chart:
    says = "; ".join(f"{bar.label} {bar.shown}" for bar in bars) + "."

    def made(width: int) -> Drawing:
        return intervals(title, says, bars, width=width, zero=zero, top=top)

    return Chart(name, made(WIDE), made(NARROW))


def keys(data: StudyData) -> list[Key]:
    keys = [
        Key(base_name(base.source), number) for number, base in enumerate(data.config.base_models)
    ]
    return [*keys, *([Key("reference")] if data.references else [])]


def _table(data: StudyData) -> Table:
    heads = [
        "trial",
        "base model",
        "epoch",
        "validation",
        "test",
        "95 % interval",
        "parameters",
        "trained",
        "training",
        "ms per text",
    ]
    paths = list(dict.fromkeys(path for entry in data.trials for path in entry.settings))
    entries = data.board.entries
    # A trial is named after its base model, unless two of those have the same name or a strange
    # one.
    is_told = any(not entry.name.startswith(base_name(entry.base_model)) for entry in data.trials)
    heads = heads if is_told else [head for head in heads if head != "base model"]
    rows = [
        [
            entry.name
            + (f" ({entry.status})" if entry.status in ("stopped", "failed", "running") else ""),
            *([base_name(entry.base_model)] if is_told else []),
            "" if entry.epoch is None else str(entry.epoch),
            short(entry.validation.get(data.metric)),
            short(entry.test.get(data.metric)),
            between(entry.test_interval.low, entry.test_interval.high)
            if entry.test_interval
            else "",
            compact(entry.num_parameters),
            compact(entry.num_trainable),
            duration(entry.seconds),
            "" if entry.ms_per_row is None else f"{entry.ms_per_row:.1f}",
            *(setting(entry.settings[path]) if path in entry.settings else "" for path in paths),
        ]
        for entry in entries
    ]
    strong = frozenset(
        place for place, entry in enumerate(entries) if entry.name == data.board.winner
    )
    grey = frozenset(place for place, entry in enumerate(entries) if entry.kind == "reference")
    caption = (
        f"Every trial and reference, by {data.metric_name} on validation rows; a stopped trial was "
        "ended early by the scheduler"
    )
    return Table(
        caption,
        [*heads, *map(axis_name, paths)],
        rows,
        left=frozenset({0, 1} if is_told else {0}),
        strong=strong,
        set_back=grey,
    )


_UNTUNED = ", untuned"


def answers(data: StudyData) -> Section | None:
    prompts, said = data.samples.get("prompts", []), data.samples.get("answers", {})
    best = data.board.best
    before, after = said.get(f"{best.base_model}{_UNTUNED}"), said.get(best.name)
    if not prompts or before is None or after is None:
        return None
    rows = [list(row) for row in zip(prompts, before, after, strict=True)]
    heads = ["prompt", f"{best.base_model} before training", f"{best.name}, the winner"]
    note = (
        "Greedy answers of at most task.max_new_tokens tokens, as they were written; the prompts "
        "are those of task.sample_prompts."
    )
    return Section(
        "samples",
        "Sample prompts",
        [
            Table("Answers before and after training", heads, rows, left=frozenset({0, 1, 2})),
            Text(note, is_note=True),
        ],
    )
