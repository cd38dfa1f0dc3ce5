"""The head of a report with the winner, and the sections on the study's setup and on sample
prompts."""

from medray.config.study import LEARNING_RATE
from medray.evaluation.leaderboard import Pairing
from medray.reports.blocks import (
    Fact,
    Paragraph,
    ReportSection,
    ReportTable,
)
from medray.reports.ranking import interval_text
from medray.reports.study_data import (
    StudyData,
    axis_name,
    base_name,
    between,
    compact,
    count,
    duration,
    join_names,
    short,
    with_sign,
)


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
        sentences.append(verdict(pair, board.title(pair.other)))
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
    """Return the comparisons of the winner on test rows with the best baseline, and with its base
    model before training."""
    names = {entry.name for entry in data.references}
    pairs = [pair for pair in data.board.main_comparisons if pair.split == "test"]
    return [pair for pair in pairs if pair.other in names]


def verdict(pair: Pairing, other: str) -> str:
    """Describe a comparison on test rows with `other`, the title of its other entry."""
    difference, low, high = pair.comparison.difference, pair.comparison.low, pair.comparison.high
    if pair.is_tie:
        return (
            f"The test rows cannot separate it from {other} (difference "
            f"{with_sign(difference)}, 95 % interval {interval_text(pair)})."
        )
    if difference < 0:
        return (
            f"On the same test rows, {other} is better by {short(-difference)} (95 % interval "
            f"{between(-high, -low)})."
        )
    return (
        f"On the same test rows, it is better than {other} by {short(difference)} (95 % "
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
    baseline = data.board.best_baseline
    for pair in references(data):
        if baseline and pair.other == baseline.name:
            numbers.append(
                Fact(
                    with_sign(pair.comparison.difference),
                    f"difference to {data.board.title(pair.other)}",
                    f"95 % interval {interval_text(pair)}",
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
    tries_rates = any(map(config.tries_rates, config.base_models))
    algorithm = "learning rates" if tries_rates else config.search.algorithm
    algorithm = "random" if algorithm == "auto" else algorithm
    scheduler = "asha" if any(map(config.uses_asha, config.base_models)) else "none"
    axes = list(
        dict.fromkeys(
            path
            for base in config.base_models
            for path in config.space(base) or config.tries_rates(base) * [LEARNING_RATE]
        )
    )
    lines = [
        ("Task", config.task.name + (f": {labels}" if labels else "")),
        ("Metric", f"{data.metric_name} on validation rows"),
        ("Data", f"{config.data.format.name}" + (f", {source}" if source else "")),
        ("Rows", ", ".join(f"{side} {number:,}" for side, number in rows.items())),
        ("Base models", join_names([base.source for base in config.base_models])),
        (
            "Search",
            f"{algorithm}, scheduler {scheduler}, {count(len(data.trials), 'trial')}",
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
