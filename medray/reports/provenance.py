"""The sections of a report on the data's audit and on how to repeat the study."""

from collections.abc import Mapping
from typing import Any

from medray.registry import card
from medray.reports.blocks import (
    Block,
    Chart,
    ChartFigure,
    Code,
    Details,
    Paragraph,
    ReportSection,
    ReportTable,
)
from medray.reports.interval_chart import Bar, intervals
from medray.reports.study_data import StudyData, percent, short
from medray.reports.svg import NARROW, WIDE
from medray.types import DISCLAIMER


def audit(data: StudyData) -> ReportSection | None:
    """Show the properties of the data set, its labels and the lengths of its texts."""
    counts = data.audit
    if not counts:
        return None
    num_rows, has_mentions = counts["num_rows"], bool(counts.get("num_mentions"))
    has_labels = bool(counts["labels"]) and not has_mentions
    rows = _row_properties(counts)
    if has_mentions:
        kinds = ", ".join(f"{kind} {number:,}" for kind, number in counts["labels"].items())
        rows.append(["mentions", f"{counts['num_mentions']:,}; rows with each kind: {kinds}"])
    if has_labels:
        rows += _label_properties(counts)
    blocks: list[Block] = [
        ReportTable("Properties of the data set", (), rows, left=frozenset({0, 1})),
        *([_labels(counts["labels"], num_rows)] if has_labels else []),
        *_lengths(counts, num_rows),
    ]
    return ReportSection("data", "The data", blocks)


def _row_properties(counts: Mapping[str, Any]) -> list[list[str]]:
    left_out = [
        (counts["num_empty"], "without text set aside"),
        (counts.get("num_unlabelled", 0), "without a label left out"),
    ]
    notes = "".join(f", and {number:,} {what}" for number, what in left_out if number)
    splits = ", ".join(f"{side} {number:,}" for side, number in counts["splits"].items())
    duplicates = (
        f"{counts['exact_groups']:,} texts occur more than once, in {counts['exact_rows']:,} rows; "
        f"{_near(counts)}"
    )
    return [
        ["rows", f"{counts['num_rows']:,}{notes}"],
        ["splits", splits],
        ["duplicates", duplicates],
    ]


def _label_properties(counts: Mapping[str, Any]) -> list[list[str]]:
    conflicts = (
        f"{counts['conflicting_texts']:,} texts have different labels "
        f"({counts['conflicting_rows']:,} rows)"
    )
    ceiling = percent(counts["accuracy_ceiling"])
    constant = (
        f"accuracy {short(counts['majority_accuracy'])}, macro F1 "
        f"{short(counts['majority_f1_macro'])}"
    )
    return [
        ["conflicts", conflicts if counts["conflicting_texts"] else "no text has different labels"],
        ["accuracy ceiling", f"no classifier can be right on more than {ceiling} of the rows"],
        [f"always predicting {counts['majority_label']}", constant],
    ]


def _lengths(counts: Mapping[str, Any], num_rows: int) -> list[Block]:
    if not counts.get("tokens"):
        return []
    lines = [
        [
            source,
            f"{of['mean']:.0f}",
            f"{of['median']:.0f}",
            f"{of['p95']:.0f}",
            str(of["longest"]),
            _over(of, num_rows),
        ]
        for source, of in counts["tokens"].items()
    ]
    heads = ["base model", "mean", "median", "95th percentile", "longest", "rows over the limit"]
    return [ReportTable("Lengths of the texts in tokens, by base model's tokenizer", heads, lines)]


def _near(counts: Mapping[str, Any]) -> str:
    across = counts.get("given_across")
    near = f"{counts['near_groups']:,} groups of near duplicates hold {counts['near_rows']:,} rows"
    return f"{near}; " + (
        f"the data's own split puts {across} groups on two sides"
        if across
        else "no group is on two sides of the split"
    )


def _over(counts: Mapping[str, Any], num_rows: int) -> str:
    return (
        f"{counts['num_over']:,} over {counts['max_length']} "
        f"({percent(counts['num_over'] / num_rows, 0)})"
    )


def _labels(labels: Mapping[str, int], num_rows: int) -> Block:
    order = sorted(labels.items(), key=lambda item: -item[1])
    rows = [[label, f"{number:,}", percent(number / num_rows)] for label, number in order]
    table = ReportTable("Rows of each label", ["label", "rows", "share"], rows)
    if not 2 < len(order) <= 40:
        return table
    bars = [Bar(label, float(number), series=0, text=f"{number:,}") for label, number in order]
    description = "; ".join(f"{bar.label} {bar.text}" for bar in bars) + "."
    drawings = [
        intervals("Rows of each label", description, bars, width=width, zero=True)
        for width in (WIDE, NARROW)
    ]
    return Details("Rows of each label", [ChartFigure([Chart("labels", *drawings)]), table])


def repeat(data: StudyData) -> ReportSection:
    publish = data.config.publish
    lines = [f"medray study {data.run}/study.yaml"]
    if publish:
        lines.append(f"medray verify {publish.name}@{publish.alias}")
    blocks: list[Block] = [Code("\n".join(lines))]
    if data.winner:
        blocks.append(
            Paragraph(
                "The seeds determine the splits, the sampling and the initial weights. Which "
                "trials a scheduler stops early can depend on their timing. These fingerprints "
                "identify the winner:"
            )
        )
        rows = [list(line) for line in data.winner.origin]
        blocks.append(ReportTable("Fingerprints of the winner", (), rows, left=frozenset({0, 1})))
        figures = [
            [row.metric, card.format_figure(row.validation), card.format_figure(row.test)]
            for row in data.winner.figures
        ]
        note = f" {data.winner.openings}" if data.winner.openings else ""
        caption = f"Every metric of the winner, as on its model card.{note}"
        behavior = [Paragraph(sentence, is_note=True) for sentence in data.winner.behavior]
        blocks.append(
            Details(
                "Every metric of the winner",
                [ReportTable(caption, ["metric", "validation", "test"], figures), *behavior],
            )
        )
    blocks.append(Details("study.yaml with all defaults", [Code(data.settings)]))
    blocks.append(Paragraph(DISCLAIMER, is_note=True))
    return ReportSection("repeat", "How to repeat the study", blocks)
