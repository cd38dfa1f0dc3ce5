"""The section of a report on how reliable the winner's confidence is."""

from medray.evaluation.analysis import (
    ModelAnalysis,
    Reliability,
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
from medray.reports.charts import (
    Curve,
    ReliabilityPoint,
    lines,
    reliability,
)
from medray.reports.study_data import StudyData, between, join_names, percent, short
from medray.reports.svg import Drawing


def section(data: StudyData) -> ReportSection | None:
    """Show reliability before and after calibration, precision by coverage, the abstention rule."""
    if not data.analysis:
        return None
    best = data.analysis.best
    test = best.test
    pairs = [
        ("before", "Before calibration", test.before),
        ("after", "After calibration", test.after),
    ]
    number = (
        next((data.series(entry) for entry in data.trials if entry.name == best.name), None) or 0
    )
    charts = [
        Chart(
            f"reliability-{name}",
            reliability(
                f"{title}: ECE {values.ece:.3f}", _describe(values), _points(values), number=number
            ),
        )
        for name, title, values in pairs
    ]
    if len(test.risk_coverage) > 1:
        charts.append(Chart("risk-coverage", _risk(best, number)))
    caption = (
        "All charts show test rows. On the dashed diagonal, the confidence equals the share of "
        "right predictions. Larger dots and higher bars stand for more rows. The last chart shows "
        "the share of right predictions if people decide the rows with the lowest confidence."
    )
    blocks: list[Block] = [ChartFigure(charts, caption), Paragraph(_calibration_sentence(best))]
    if rule := _abstention_sentence(best):
        blocks.append(Paragraph(rule))
    if any(part.figures.abstention for part in test.questions):
        blocks.append(_rule_table(test))
    if test.risk_coverage:
        blocks.append(Details("Coverage and precision as a table", [_risk_table(test)]))
    return ReportSection("confidence", "How reliable its confidence is", blocks)


def _points(values: Reliability) -> list[ReliabilityPoint]:
    return [
        ReliabilityPoint(part.confidence, part.share_right, part.num, part.low, part.high)
        for part in values.bins
    ]


def _describe(values: Reliability) -> str:
    return (
        "; ".join(
            f"confidence {part.confidence:.2f}: {part.share_right:.0%} right of {part.num}"
            for part in values.bins
        )
        + "."
    )


def _risk(best: ModelAnalysis, number: int) -> Drawing:
    curve = best.test.risk_coverage
    points = tuple((100 * point.coverage, 100 * point.precision) for point in curve)
    step = max(1, len(curve) // 8)
    description = (
        "; ".join(
            f"{percent(point.coverage)} answered, {percent(point.precision)} right"
            for point in curve[::step]
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
        "Precision of the answered rows, %",
        description,
        curves,
        x_label="rows answered, %",
        y_top=100.0,
    )


def _risk_table(split: SplitAnalysis) -> ReportTable:
    curve = split.risk_coverage
    step = max(1, len(curve) // 12)
    points = [*curve[::step], *([curve[-1]] if (len(curve) - 1) % step else [])]
    rows = [
        [
            percent(point.coverage),
            f"{point.num_answered:,}",
            short(point.precision),
            short(point.threshold),
        ]
        for point in points
    ]
    return ReportTable(
        "Coverage and precision if the model answers only rows above a confidence",
        ["coverage", "rows", "precision", "confidence from"],
        rows,
    )


def _calibration_sentence(best: ModelAnalysis) -> str:
    before, after = best.test.before, best.test.after
    return (
        "The expected calibration error (ECE), the mean distance between confidence and the share "
        f"of right predictions, is {before.ece:.3f} on test rows before calibration and "
        f"{after.ece:.3f} after it. The log loss is {before.log_loss:.3f} before and "
        f"{after.log_loss:.3f} after. {_temperatures(best)} fitted on validation rows."
    )


def _temperatures(best: ModelAnalysis) -> str:
    if best.calibration.answers is None:
        return f"The temperature {best.calibration.temperature:.3g} was"
    by_kind = best.calibration.answers.temperatures.items()
    if not by_kind:
        return "No temperature was"
    names = join_names([f"{kind} {temperature:.3g}" for kind, temperature in by_kind])
    return f"The temperatures by kind of question ({names}) were"


def _rule_table(test: SplitAnalysis) -> ReportTable:
    """Show the threshold of each question, and its effect on test rows."""
    rows = []
    for part in test.questions:
        if (rule := part.figures.abstention) is None:
            continue
        right = rule.precision
        rows.append(
            [
                part.name,
                f"{rule.wanted:g}",
                "abstains on all" if rule.threshold is None else short(rule.threshold),
                percent(rule.coverage),
                short(right.value) if right else "",
                between(right.low, right.high) if right else "",
            ]
        )
    heads = ["question", "target", "threshold", "answered", "precision", "95 % interval"]
    return ReportTable(
        "Abstention by question: the threshold from validation rows, and its effect on test rows",
        heads,
        rows,
    )


def _abstention_sentence(best: ModelAnalysis) -> str:
    rule = best.test.abstention
    if rule is None:
        return ""
    target = f"The target precision is {rule.wanted:g}."
    if rule.threshold is None:
        return (
            f"{target} No threshold reaches it with certainty on validation rows, so the model "
            "abstains on every row."
        )
    effect = (
        f"{target} The model abstains below a confidence of {rule.threshold:.3f}. It answers "
        f"{percent(rule.coverage)} of the test rows ({rule.num_answered:,})"
    )
    if rule.precision is None:
        return f"{effect}."
    right = rule.precision
    return (
        f"{effect}, of which {percent(right.value)} are right (95 % interval {percent(right.low)} "
        f"to {percent(right.high)})."
    )
