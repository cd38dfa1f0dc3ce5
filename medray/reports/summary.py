"""The first sections of a report: the winner, the setup of the study, the leaderboard and the
comparisons with the winner."""

from collections.abc import Sequence

from medray.evaluation import leaderboard_files
from medray.evaluation.leaderboard import Entry, Pairing
from medray.evaluation.metrics import higher_is_better
from medray.reports.blocks import (
    Block,
    Chart,
    ChartFigure,
    Details,
    Fact,
    Key,
    Paragraph,
    ReportSection,
    ReportTable,
)
from medray.reports.charts import NARROW, WIDE, Bar, intervals
from medray.reports.study_data import (
    StudyData,
    axis_name,
    base_name,
    between,
    compact,
    count,
    duration,
    join_names,
    setting,
    short,
    with_sign,
)
from medray.reports.svg import Drawing


def headline(data: StudyData) -> str:
    best, method = data.board.best, f" with {data.winner.method}" if data.winner else ""
    by = f"{base_name(best.base_model)}{method} won"
    value = best.test.get(data.metric)
    if value is None:
        return (
            f"{by}: {data.metric_name} {short(best.validation.get(data.metric))} on validation "
            "rows. The test rows were not evaluated."
        )
    spread = (
        f" (95 % interval {between(best.test_interval.low, best.test_interval.high)})"
        if best.test_interval
        else ""
    )
    means = f", as the mean of {best.seeds.num_seeds} seeds" if best.seeds else ""
    return (
        f"{by}: {data.metric_name} {short(value)}{spread} on "
        f"{count(data.board.num_rows['test'], 'test row')}{means}."
    )


def findings(data: StudyData) -> list[str]:
    """Return sentences on how the winner was chosen and on how certain the choice is."""
    board, best = data.board, data.board.best
    trials = [entry for entry in data.trials if entry.validation]
    names = join_names(
        list(dict.fromkeys(base_name(base.source) for base in data.config.base_models))
    )
    sentences = [
        f"{best.name} was chosen among {count(len(trials), 'trial')} of {names} by its "
        f"{data.metric_name} on {board.num_rows['validation']:,} validation rows, which was "
        f"{short(best.validation.get(data.metric))} at epoch {best.epoch}."
    ]
    if others := [name for name in board.tied if name != board.winner]:
        sentences.append(
            f"The validation rows cannot separate it from {join_names(others)}, which is a tie; "
            f"{board.tie_break}."
        )
    for pair in references(data):
        sentences.append(verdict(pair))
    if best.test and best.test_interval is None:
        sentences.append(
            f"{data.metric_name} has no interval, so it is not known whether the "
            "rows can separate two models."
        )
    if board.num_openings > 1:
        sentences.append(
            f"The labels of these test rows were read {board.num_openings} times. Each further use "
            "makes the test figures more optimistic."
        )
    num_failed = sum(entry.status == "failed" for entry in data.trials)
    if num_failed:
        sentences.append(f"{count(num_failed, 'trial')} failed; the leaderboard gives the reason.")
    return sentences


def references(data: StudyData) -> list[Pairing]:
    """Return the comparisons of the winner with the references on test rows."""
    names = {entry.name for entry in data.references}
    return [pair for pair in data.board.comparisons if pair.split == "test" and pair.other in names]


def verdict(pair: Pairing) -> str:
    difference, low, high = pair.comparison.difference, pair.comparison.low, pair.comparison.high
    if pair.is_tie:
        return (
            f"The test rows cannot separate it from {pair.other} (difference "
            f"{with_sign(difference)}, 95 % interval {_spread(pair)})."
        )
    if difference < 0:
        return (
            f"On the same test rows, {pair.other} is better by {short(-difference)} (95 % interval "
            f"{between(-high, -low)})."
        )
    return (
        f"On the same test rows, it is better than {pair.other} by {short(difference)} (95 % "
        f"interval {between(low, high)})."
    )


def facts(data: StudyData) -> list[Fact]:
    best = data.board.best
    test, spread = best.test.get(data.metric), best.test_interval
    figure = Fact(
        short(best.validation.get(data.metric) if test is None else test),
        f"{'test' if test is not None else 'validation'} {data.metric_name}",
        f"95 % interval {between(spread.low, spread.high)}" if spread else "",
    )
    numbers = [figure]
    if pairs := references(data):
        closest = min(pairs, key=lambda pair: pair.comparison.difference)
        numbers.append(
            Fact(
                with_sign(closest.comparison.difference),
                f"difference to {closest.other}",
                f"95 % interval {_spread(closest)}",
            )
        )
    seconds = sum(entry.seconds or 0.0 for entry in data.trials)
    numbers.append(
        Fact(
            str(len(data.trials)),
            "trials" if len(data.trials) != 1 else "trial",
            f"{duration(seconds)} of training in total",
        )
    )
    if best.ms_per_row is not None:
        numbers.append(
            Fact(
                f"{best.ms_per_row:.3g} ms",
                "per text",
                f"{compact(best.num_parameters)} parameters",
            )
        )
    return numbers


def study(data: StudyData) -> ReportSection:
    """Describe the task, the data, the base models and the search."""
    config, board = data.config, data.board
    labels = (
        join_names(data.winner.labels)
        if data.winner
        else join_names(list(data.audit.get("labels", {})))
    )
    rows = data.audit.get("splits") or board.num_rows
    source = getattr(config.data.format, "path", "")
    search = config.search
    axes = list(dict.fromkeys(path for base in config.base_models for path in config.space(base)))
    lines = [
        ("Task", config.task.name + (f": {labels}" if labels else "")),
        ("Metric", f"{data.metric_name} on validation rows"),
        ("Data", f"{config.data.format.name}" + (f", {source}" if source else "")),
        ("Rows", ", ".join(f"{side} {number:,}" for side, number in rows.items())),
        ("Base models", join_names([base.source for base in config.base_models])),
        (
            "Search",
            f"{search.algorithm}, scheduler {search.scheduler}, {count(len(data.trials), 'trial')}",
        ),
        (
            "Search space",
            join_names([axis_name(path) for path in axes])
            if axes
            else "none; every setting is fixed",
        ),
    ]
    return ReportSection(
        "study",
        "The study",
        [ReportTable("The setup of the study", (), lines, left=frozenset({0, 1}))],
    )


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
            text=f"{with_sign(pair.comparison.difference)}  ({_spread(pair)})",
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
    return [with_sign(difference), _spread(pair), f"{pair.comparison.p_value:.3f}", verdict]


def _spread(pair: Pairing) -> str:
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


_UNTUNED_SUFFIX = ", untuned"


def samples(data: StudyData) -> ReportSection | None:
    """Show the user's prompts with answers from before and after training."""
    prompts, texts = data.samples.get("prompts", []), data.samples.get("answers", {})
    best = data.board.best
    before, after = texts.get(f"{best.base_model}{_UNTUNED_SUFFIX}"), texts.get(best.name)
    if not prompts or before is None or after is None:
        return None
    rows = [list(row) for row in zip(prompts, before, after, strict=True)]
    heads = ["prompt", f"{best.base_model} before training", f"{best.name}, the winner"]
    note = (
        "The prompts are those of task.sample_prompts. The answers are unedited, generated "
        "greedily, with at most task.max_new_tokens tokens."
    )
    return ReportSection(
        "samples",
        "Sample prompts",
        [
            ReportTable(
                "Answers before and after training", heads, rows, left=frozenset({0, 1, 2})
            ),
            Paragraph(note, is_note=True),
        ],
    )
