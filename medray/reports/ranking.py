"""The sections of a report on the leaderboard and on the comparisons of the winner with others."""

from collections.abc import Sequence

from medray.evaluation import leaderboard_files
from medray.evaluation.leaderboard import Entry, Pairing
from medray.evaluation.metrics import higher_is_better
from medray.reports.blocks import (
    Block,
    Chart,
    ChartFigure,
    Details,
    Key,
    Paragraph,
    ReportSection,
    ReportTable,
)
from medray.reports.interval_chart import Bar, intervals
from medray.reports.study_data import (
    StudyData,
    axis_name,
    base_name,
    between,
    compact,
    duration,
    setting,
    short,
    with_sign,
)
from medray.reports.svg import NARROW, WIDE, Drawing


def leaderboard(data: StudyData) -> ReportSection:
    entries = [entry for entry in data.board.entries if data.metric in entry.validation]
    top = 1.0 if higher_is_better(data.metric) else None
    bars = [_bar(data, entry, "validation") for entry in entries[:_MOST_BARS]]
    test_bars = [_bar(data, entry, "test") for entry in entries if data.metric in entry.test]
    blocks: list[Block] = []
    if test_bars:
        title = f"{data.metric_name} on test rows"
        blocks.append(
            ChartFigure([_chart("leaderboard-test", title, test_bars, top)], _TEST, keys(data))
        )
    title = f"{data.metric_name} on validation rows"
    blocks.append(
        ChartFigure(
            [_chart("leaderboard-validation", title, bars, top)],
            f"{title}, which choose the winner. The chart shows {_which(len(entries))}at its best "
            "epoch.",
        )
    )
    blocks.append(_table(data))
    if data.metric in data.board.best.test:
        sentences = leaderboard_files.sentences(data.board, data.analysis)
        blocks.append(
            Details(
                "The leaderboard in sentences",
                [Paragraph(sentence, is_note=True) for sentence in sentences],
            )
        )
    rows = [[entry.name, entry.base_model, entry.error] for entry in data.trials if entry.error]
    if rows:
        blocks.append(
            ReportTable(
                "Failed trials, with the reason",
                ["trial", "base model", "reason"],
                rows,
                left=frozenset({0, 1, 2}),
            )
        )
    return ReportSection("leaderboard", "Leaderboard", blocks)


def _which(num_entries: int) -> str:
    return (
        f"the best {_MOST_BARS} of {num_entries}, each "
        if num_entries > _MOST_BARS
        else "each trial "
    )


_MOST_BARS = 24


_TEST = (
    "The best of each base model and the references on test rows, which are used once and choose "
    "nothing. A filled dot is the test figure with its 95 % bootstrap interval; an open dot is the "
    "validation figure."
)


def against(data: StudyData) -> ReportSection | None:
    """Compare the winner with its untuned base model, the baselines and the runner-up on the same
    rows."""
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
            text=f"{with_sign(pair.comparison.difference)}  ({interval_text(pair)})",
            brief=with_sign(pair.comparison.difference),
        )
        for pair in pairs
    ]
    title = f"The winner's {data.metric_name} minus that of others, on the same test rows"
    rows = [
        [f"{pair.other}, {pair.split}", *_comparison_cells(pair)] for pair in data.board.comparisons
    ]
    caption = (
        "Differences on the same bootstrap resamples of the rows, so that rows that are hard for "
        "both cancel out"
    )
    has_untuned = any("untuned" in pair.other for pair in pairs)
    note = (
        ""
        if has_untuned
        else " There is no untuned base model, since its new head would predict at random."
    )
    chart = _chart("differences", title, bars, None, zero=True)
    heads = ["winner minus", "difference", "95 % interval", "p value", "verdict"]
    return ReportSection(
        "against",
        "The winner against others",
        [
            ChartFigure(
                [chart],
                f"{title}, with the 95 % interval of the difference. Grey: the rows cannot "
                f"separate the two.{note}",
            ),
            ReportTable(caption, heads, rows, left=frozenset({0, 4})),
        ],
    )


def _comparison_cells(pair: Pairing) -> list[str]:
    difference = pair.comparison.difference
    verdict = "no clear difference" if pair.is_tie else "better" if difference > 0 else "worse"
    return [with_sign(difference), interval_text(pair), f"{pair.comparison.p_value:.3f}", verdict]


def interval_text(pair: Pairing) -> str:
    return f"{with_sign(pair.comparison.low)} to {with_sign(pair.comparison.high)}"


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
        text=short(value) + (f"  ({between(spread.low, spread.high)})" if spread else ""),
        brief=short(value),
    )


def _chart(
    name: str, title: str, bars: Sequence[Bar], top: float | None, *, zero: bool = False
) -> Chart:
    description = "; ".join(f"{bar.label} {bar.text}" for bar in bars) + "."

    def draw(width: int) -> Drawing:
        return intervals(title, description, bars, width=width, zero=zero, top=top)

    return Chart(name, draw(WIDE), draw(NARROW))


def keys(data: StudyData) -> list[Key]:
    keys = [
        Key(base_name(base.source), number) for number, base in enumerate(data.config.base_models)
    ]
    return [*keys, *([Key("reference")] if data.references else [])]


def _table(data: StudyData) -> ReportTable:
    heads = [
        "trial",
        "base model",
        "epoch",
        "validation",
        "test",
        "95 % interval",
        "parameters",
        "trainable",
        "training time",
        "ms/text",
    ]
    paths = list(dict.fromkeys(path for entry in data.trials for path in entry.settings))
    entries = data.board.entries
    # A trial has the name of its base model, unless that name is not unique or not a file name.
    has_base = any(not entry.name.startswith(base_name(entry.base_model)) for entry in data.trials)
    has_services = any(entry.service for entry in entries)
    heads += ["tokens", "cost"] * has_services
    heads = heads if has_base else [head for head in heads if head != "base model"]
    rows = [
        [
            entry.name
            + (f" ({entry.status})" if entry.status in ("stopped", "failed", "running") else ""),
            *([base_name(entry.base_model)] if has_base else []),
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
            *(entry.service.cells() if entry.service else ["", ""] * has_services),
            *(setting(entry.settings[path]) if path in entry.settings else "" for path in paths),
        ]
        for entry in entries
    ]
    strong = frozenset(
        place for place, entry in enumerate(entries) if entry.name == data.board.winner
    )
    grey = frozenset(place for place, entry in enumerate(entries) if entry.kind == "reference")
    caption = (
        f"Every trial and reference, sorted by {data.metric_name} on validation rows; the "
        "scheduler ended a stopped trial early"
    )
    return ReportTable(
        caption,
        [*heads, *map(axis_name, paths)],
        rows,
        left=frozenset({0, 1} if has_base else {0}),
        strong=strong,
        grey=grey,
    )
