"""The sections of a report on the winner's mistakes and on its slices."""

from collections.abc import Iterator, Mapping, Sequence

from medray.evaluation.analysis import (
    Estimate,
    SliceFigures,
    SplitAnalysis,
)
from medray.reports.blocks import (
    Block,
    Chart,
    ChartFigure,
    Details,
    Paragraph,
    ReportSection,
    ReportTable,
)
from medray.reports.charts import cells
from medray.reports.interval_chart import Bar, intervals
from medray.reports.study_data import StudyData, between, count, metric_name, percent, short
from medray.reports.svg import NARROW, WIDE

_MOST_CELLS = 20  # with more labels a confusion matrix is not readable
_MOST_SLICES = 24


def mistakes(data: StudyData) -> ReportSection | None:
    """Show confusion matrices and the metrics of each class."""
    blocks: list[Block] = []
    if data.analysis:
        best = data.analysis.best
        if best.test.questions:
            return ReportSection("mistakes", _TITLE, list(_questions(best.test)))
        splits = [best.test, best.validation]
        matrices = [
            (split.split, split.num_rows, split.confusion) for split in splits if split.confusion
        ]
        blocks += _matrices(data.analysis.labels, matrices)
        blocks += [_classes(split) for split in splits[:1]]
        blocks += [
            Details("The same table for validation rows", [_classes(split) for split in splits[1:]])
        ]
        if best.test.mistakes or best.test.suspects:
            blocks.append(_review(best.test))
    elif data.validation.get("per_class"):
        metrics = data.validation
        blocks += _matrices(
            metrics["labels"],
            [("validation", metrics["num_rows"], metrics["confusion"])]
            if metrics.get("confusion")
            else [],
        )
        blocks.append(_by_class(metrics["per_class"]))
    return ReportSection("mistakes", _TITLE, blocks) if blocks else None


_TITLE = "Correct and wrong predictions"


def _questions(test: SplitAnalysis) -> Iterator[Block]:
    """Show the metrics of each question, then its confusion matrix and those of its options."""
    rows = [
        [
            part.name,
            short(part.figures.figure.value),
            between(part.figures.figure.low, part.figures.figure.high),
            f"{part.figures.num_rows:,}",
            f"{len(part.figures.mistakes):,}",
            f"{len(part.figures.suspects):,}",
        ]
        for part in test.questions
    ]
    heads = [
        "question",
        "macro F1",
        "95 % interval",
        "answers",
        "wrong",
        "may be wrong in the data",
    ]
    yield ReportTable("The winner's answers to test rows, by question", heads, rows)
    for part in test.questions:
        split = f"{part.name}: {test.split}"
        matrix = (split, part.figures.num_rows, part.figures.confusion)
        yield Details(part.name, [*_matrices(part.labels, [matrix]), _classes(part.figures, split)])
    yield Paragraph(
        "An answer with shares counts as its most probable option. `medray review` lists wrong "
        "answers by row id. This report contains no text of the data.",
        is_note=True,
    )


def _by_class(per_class: Mapping[str, Mapping[str, float]]) -> ReportTable:
    """Return the metrics of each class, or of each question."""
    has_classes = all("f1" in values for values in per_class.values())
    names = dict.fromkeys(name for values in per_class.values() for name in values)
    heads = (
        {"precision": "precision", "recall": "recall", "f1": "F1", "auprc": "AUPRC"}
        if has_classes
        else {name: name for name in names if name != "support"}
    )
    rows = [
        [label, *(short(values.get(name)) for name in heads), f"{values['support']:.0f}"]
        for label, values in per_class.items()
    ]
    what = "class" if has_classes else "question"
    return ReportTable(
        f"The winner's metrics on validation rows, by {what}",
        [what, *heads.values(), "rows"],
        rows,
    )


def _matrices(
    labels: Sequence[str], matrices: Sequence[tuple[str, int, Sequence[Sequence[int]]]]
) -> list[Block]:
    if not matrices:
        return []
    if len(labels) > _MOST_CELLS:
        return [
            Paragraph(
                f"{len(labels)} labels are too many for a readable confusion matrix; the table by "
                "class has the figures.",
                is_note=True,
            )
        ]
    charts = []
    for split, num_rows, counts in matrices:
        title = f"Confusion on {num_rows:,} {split} rows"
        description = "; ".join(
            f"of {label}: "
            + ", ".join(f"{number} predicted as {labels[at]}" for at, number in enumerate(row))
            for label, row in zip(labels, counts, strict=True)
        )
        charts.append(Chart(f"confusion-{split}", cells(title, f"{description}.", labels, counts)))
    return [
        ChartFigure(
            charts,
            "Rows are the true class, columns the predicted class. The shade is the share of the "
            "row.",
        )
    ]


def _classes(split: SplitAnalysis, name: str = "") -> ReportTable:
    rows = [
        [
            figures.label,
            short(figures.precision),
            short(figures.recall),
            short(figures.f1.value),
            between(figures.f1.low, figures.f1.high),
            *(
                f"{number:,}"
                for number in (
                    figures.true_positives,
                    figures.false_positives,
                    figures.false_negatives,
                )
            ),
        ]
        for figures in split.per_class
    ]
    heads = [
        "class",
        "precision",
        "recall",
        "F1",
        "95 % interval",
        "true positives",
        "false positives",
        "false negatives",
    ]
    return ReportTable(
        f"The winner's metrics on {split.num_rows:,} {name or split.split} rows, by class",
        heads,
        rows,
    )


def _review(split: SplitAnalysis) -> Paragraph:
    num_confident = sum(mistake.confidence >= 0.9 for mistake in split.mistakes)
    summary = f"The winner predicts {count(len(split.mistakes), 'test row')} wrongly"
    summary += f", {num_confident} of them with a confidence of 0.9 or more" * bool(split.mistakes)
    if split.suspects:
        summary += f"; {count(len(split.suspects), 'label')} of test rows may be wrong in the data"
    return Paragraph(
        f"{summary}. `medray review` lists them by row id. This report contains no text of the "
        "data.",
        is_note=True,
    )


def _estimate(value: Estimate) -> str:
    return f"{value.value:.3f} (95 % interval {between(value.low, value.high)})"


def slices(data: StudyData) -> ReportSection | None:
    """Show the F1 of slices of the test rows."""
    if not data.analysis or not data.analysis.best.test.slices:
        return None
    test = data.analysis.best.test
    name = metric_name(test.metric, getattr(data.config.task, "positive_label", None))
    with_f1 = [part for part in test.slices if part.f1 is not None]
    blocks: list[Block] = []
    if test.worst:
        blocks.append(Paragraph(_worst_sentence(test, name)))
    if with_f1:
        lowest = sorted(with_f1, key=lambda part: part.f1.value if part.f1 else 0.0)[:_MOST_SLICES]
        slices_in_chart = [part for part in with_f1 if part in lowest]
        whole = Bar(
            "all test rows",
            test.figure.value,
            test.figure.low,
            test.figure.high,
            is_strong=True,
            text=short(test.figure.value),
        )
        bars = [whole, *(_bar(part) for part in slices_in_chart)]
        title = f"{name} of slices of the test rows"
        description = "; ".join(f"{bar.label}: {bar.text}" for bar in bars) + "."
        chart = Chart(
            "slices",
            *(
                intervals(title, description, bars, width=width, top=1.0)
                for width in (WIDE, NARROW)
            ),
        )
        caption = f"{title}, with 95 % intervals." + (
            f" These are the {len(slices_in_chart)} lowest of {len(with_f1)}."
            if len(slices_in_chart) < len(with_f1)
            else ""
        )
        blocks.append(ChartFigure([chart], caption))
    rows = [_line(part) for part in test.slices]
    table = ReportTable(
        "Every slice of the test rows",
        ["slice", "rows", name, "95 % interval", "right rows"],
        rows,
    )
    blocks.append(table if len(rows) <= 12 else Details(f"Every slice ({len(rows)})", [table]))
    return ReportSection("slices", "Performance by subgroup", blocks)


def _bar(part: SliceFigures) -> Bar:
    assert part.f1 is not None
    label = f"{part.column}: {part.value} ({part.num_rows:,})"
    return Bar(label, part.f1.value, part.f1.low, part.f1.high, text=short(part.f1.value))


def _line(part: SliceFigures) -> list[str]:
    f1 = (
        [short(part.f1.value), between(part.f1.low, part.f1.high)]
        if part.f1
        else ["too few rows", ""]
    )
    return [f"{part.column}: {part.value}", f"{part.num_rows:,}", *f1, percent(part.share_right)]


def _worst_sentence(split: SplitAnalysis, name: str) -> str:
    assert split.worst is not None
    worst = split.worst.slice
    figure = f": {name} {_estimate(worst.f1)}" if worst.f1 else ""
    lowest = (
        f"The lowest of {split.worst.num_compared} slices is {worst.column} {worst.value}, "
        f"{count(worst.num_rows, 'row')}{figure}."
    )
    if split.worst.is_below:
        return (
            f"{lowest} This is below the figure of all rows, even with an interval that is widened "
            "for the number of comparisons."
        )
    return f"{lowest} Some slice is always the lowest; chance explains this difference."
