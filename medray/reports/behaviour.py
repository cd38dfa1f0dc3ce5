"""What the winner gets right and wrong, how far its confidence can be trusted, and for whom it is
worse."""

from collections.abc import Sequence

from medray.evaluation.analysis import (
    Estimate,
    ModelAnalysis,
    Reliability,
    SliceFigures,
    SplitAnalysis,
)
from medray.reports.blocks import Block, Chart, Details, Figure, Section, Table, Text
from medray.reports.charts import (
    NARROW,
    WIDE,
    Bar,
    Bin,
    Curve,
    cells,
    intervals,
    lines,
    reliability,
)
from medray.reports.study_data import StudyData, between, count, metric_name, percent, short
from medray.reports.svg import Drawing

_MOST_CELLS = 20  # labels of a confusion matrix that can still be read
_MOST_SLICES = 24


def mistakes(data: StudyData) -> Section | None:
    """Confusion matrices and the figures of each class."""
    blocks: list[Block] = []
    if data.analysis:
        best = data.analysis.best
        splits = [best.test, best.validation]
        matrices = [
            (split.split, split.num_rows, split.confusion) for split in splits if split.confusion
        ]
        blocks += _matrices(data.analysis.labels, matrices)
        blocks += [_classes(split) for split in splits[:1]]
        blocks += [
            Details("The same on validation rows", [_classes(split) for split in splits[1:]])
        ]
        if best.test.mistakes or best.test.suspects:
            blocks.append(_review(best.test))
    elif data.validation.get("per_class"):
        held = data.validation
        blocks += _matrices(
            held["labels"],
            [("validation", held["num_rows"], held["confusion"])] if held.get("confusion") else [],
        )
        rows = [
            [
                label,
                *(short(found.get(name)) for name in ("precision", "recall", "f1", "auprc")),
                f"{found['support']:.0f}",
            ]
            for label, found in held["per_class"].items()
        ]
        blocks.append(
            Table(
                "The winner on validation rows, by class",
                ["class", "precision", "recall", "F1", "AUPRC", "rows"],
                rows,
            )
        )
    return Section("mistakes", "What it gets right and wrong", blocks) if blocks else None


def _matrices(
    labels: Sequence[str], found: Sequence[tuple[str, int, Sequence[Sequence[int]]]]
) -> list[Block]:
    if not found:
        return []
    if len(labels) > _MOST_CELLS:
        return [
            Text(
                f"{len(labels)} labels are too many for a matrix that can be read; the table by "
                "class has the figures.",
                is_note=True,
            )
        ]
    charts = []
    for split, num_rows, counts in found:
        title = f"Confusion on {num_rows:,} {split} rows"
        says = "; ".join(
            f"of {label}: "
            + ", ".join(f"{number} answered {labels[at]}" for at, number in enumerate(row))
            for label, row in zip(labels, counts, strict=True)
        )
        charts.append(Chart(f"confusion-{split}", cells(title, f"{says}.", labels, counts)))
    return [
        Figure(charts, "Rows are the truth, columns the answers; shaded by the share of the row.")
    ]


def _classes(split: SplitAnalysis) -> Table:
    rows = [
        [
            found.label,
            short(found.precision),
            short(found.recall),
            short(found.f1.value),
            between(found.f1.low, found.f1.high),
            *(
                f"{number:,}"
                for number in (found.true_positives, found.false_positives, found.false_negatives)
            ),
        ]
        for found in split.per_class
    ]
    heads = [
        "class",
        "precision",
        "recall",
        "F1",
        "95 % interval",
        "found",
        "false alarms",
        "missed",
    ]
    return Table(f"The winner on {split.num_rows:,} {split.split} rows, by class", heads, rows)


def _review(split: SplitAnalysis) -> Text:
    said = f"{count(len(split.mistakes), 'test row')} answered wrongly"
    sure = [mistake for mistake in split.mistakes if mistake.confidence >= 0.9]
    said += f", {len(sure)} of them with a confidence of 0.9 or more" if split.mistakes else ""
    if split.suspects:
        said += f"; {count(len(split.suspects), 'label')} of test rows may themselves be wrong"
    return Text(
        f"{said}. medray review lists them by row id; no text of the data is in this report.",
        is_note=True,
    )


def confidence(data: StudyData) -> Section | None:
    """Reliability before and after calibration, risk against coverage, the abstention rule."""
    if not data.analysis:
        return None
    best = data.analysis.best
    test = best.test
    pairs = [("before", "As trained", test.before), ("after", "Calibrated", test.after)]
    number = (
        next((data.series(entry) for entry in data.trials if entry.name == best.name), None) or 0
    )
    charts = [
        Chart(
            f"reliability-{name}",
            reliability(
                f"{title}: ECE {found.ece:.3f}", _bins_said(found), _bins(found), number=number
            ),
        )
        for name, title, found in pairs
    ]
    if len(test.risk_coverage) > 1:
        charts.append(Chart("risk-coverage", _risk(best, number)))
    caption = (
        "Test rows. On the dashed diagonal a confidence is what it says; a dot's size and the bar "
        "beneath it tell how many rows it stands for. The last chart: what share of the"
        " answered rows is right if the unsure ones are left to people."
    )
    blocks: list[Block] = [Figure(charts, caption), Text(_calibration_said(best))]
    if rule := _abstention_said(best):
        blocks.append(Text(rule))
    if test.risk_coverage:
        blocks.append(Details("Coverage and precision as a table", [_risk_table(test)]))
    return Section("confidence", "How far its confidence can be trusted", blocks)


def _bins(found: Reliability) -> list[Bin]:
    return [
        Bin(held.confidence, held.share_right, held.num, held.low, held.high) for held in found.bins
    ]


def _bins_said(found: Reliability) -> str:
    return (
        "; ".join(
            f"confidence {held.confidence:.2f}: {held.share_right:.0%} right of {held.num}"
            for held in found.bins
        )
        + "."
    )


def _risk(best: ModelAnalysis, number: int) -> Drawing:
    found = best.test.risk_coverage
    points = tuple((100 * point.coverage, 100 * point.precision) for point in found)
    step = max(1, len(found) // 8)
    says = (
        "; ".join(
            f"{percent(point.coverage)} answered, {percent(point.precision)} right"
            for point in found[::step]
        )
        + "."
    )
    curves = [Curve("answered", points, series=number, is_strong=True, is_dotted=False)]
    if (rule := best.test.abstention) and rule.precision:
        curves.append(
            Curve(
                "its rule",
                ((100 * rule.coverage, 100 * rule.precision.value),),
                "its rule",
                number,
                is_strong=True,
            )
        )
    return lines(
        "Right among the answered, %", says, curves, x_label="rows answered, %", y_top=100.0
    )


def _risk_table(split: SplitAnalysis) -> Table:
    found = split.risk_coverage
    step = max(1, len(found) // 12)
    kept = [*found[::step], *([found[-1]] if (len(found) - 1) % step else [])]
    rows = [
        [
            percent(point.coverage),
            f"{point.num_answered:,}",
            short(point.precision),
            short(point.threshold),
        ]
        for point in kept
    ]
    return Table(
        "If rows below a confidence were not answered",
        ["answered", "rows", "share right", "confidence from"],
        rows,
    )


def _calibration_said(best: ModelAnalysis) -> str:
    before, after = best.test.before, best.test.after
    return (
        f"The expected calibration error (ECE) on test rows is {before.ece:.3f} as trained and "
        f"{after.ece:.3f} calibrated, with a temperature"
        f" of {best.calibration.temperature:.3g} from validation rows"
        f" (log loss {before.log_loss:.3f} and {after.log_loss:.3f})."
    )


def _abstention_said(best: ModelAnalysis) -> str:
    found = best.test.abstention
    if found is None:
        return ""
    if found.threshold is None:
        return (
            f"A precision of {found.wanted:g} was wanted; no threshold could promise it on "
            "validation rows, so every row is abstained from."
        )
    said = (
        f"A precision of {found.wanted:g} was wanted: below a confidence of {found.threshold:.3f} "
        "it abstains. On test rows it answers"
    )
    said += f" {percent(found.coverage)} ({found.num_answered:,} rows)"
    if found.precision is None:
        return said + "."
    right = found.precision
    return (
        f"{said}, of which {percent(right.value)} are right (95 % interval {percent(right.low)} to "
        f"{percent(right.high)})."
    )


def _estimate(found: Estimate) -> str:
    return f"{found.value:.3f} (95 % interval {between(found.low, found.high)})"


def slices(data: StudyData) -> Section | None:
    """F1 for parts of the test rows."""
    if not data.analysis or not data.analysis.best.test.slices:
        return None
    test = data.analysis.best.test
    name = metric_name(test.metric, getattr(data.config.task, "positive_label", None))
    told = [found for found in test.slices if found.f1 is not None]
    blocks: list[Block] = []
    if test.worst:
        blocks.append(Text(_worst_said(test, name)))
    if told:
        lowest = sorted(told, key=lambda found: found.f1.value if found.f1 else 0.0)[:_MOST_SLICES]
        shown = [found for found in told if found in lowest]
        whole = Bar(
            "all test rows",
            test.figure.value,
            test.figure.low,
            test.figure.high,
            is_strong=True,
            shown=short(test.figure.value),
        )
        bars = [whole, *(_bar(found) for found in shown)]
        title = f"{name} of slices of the test rows"
        says = "; ".join(f"{bar.label}: {bar.shown}" for bar in bars) + "."
        chart = Chart(
            "slices",
            *(intervals(title, says, bars, width=width, top=1.0) for width in (WIDE, NARROW)),
        )
        left_out = len(told) - len(shown)
        caption = f"{title}, with 95 % intervals." + (
            f" The {len(shown)} lowest of {len(told)}." if left_out else ""
        )
        blocks.append(Figure([chart], caption))
    rows = [_line(found) for found in test.slices]
    table = Table(
        "Every slice of the test rows",
        ["slice", "rows", name, "95 % interval", "whole answer right"],
        rows,
    )
    blocks.append(table if len(rows) <= 12 else Details(f"Every slice ({len(rows)})", [table]))
    return Section("slices", "For whom it is worse", blocks)


def _bar(found: SliceFigures) -> Bar:
    assert found.f1 is not None
    label = f"{found.column}: {found.value} ({found.num_rows:,})"
    return Bar(label, found.f1.value, found.f1.low, found.f1.high, shown=short(found.f1.value))


def _line(found: SliceFigures) -> list[str]:
    figure = (
        [short(found.f1.value), between(found.f1.low, found.f1.high)]
        if found.f1
        else ["too few rows", ""]
    )
    return [
        f"{found.column}: {found.value}",
        f"{found.num_rows:,}",
        *figure,
        percent(found.share_right),
    ]


def _worst_said(split: SplitAnalysis, name: str) -> str:
    assert split.worst is not None
    worst = split.worst.slice
    figure = f": {name} {_estimate(worst.f1)}" if worst.f1 else ""
    said = (
        f"The lowest of {split.worst.num_compared} slices is {worst.column} {worst.value}, "
        f"{count(worst.num_rows, 'row')}{figure}."
    )
    if split.worst.is_below:
        return f"{said} That is below the figure of all rows even when widened for so many looks."
    return f"{said} Some slice is always the lowest; this one cannot be told from the rest."
