"""Where it comes from: the data's audit, and what it takes to repeat the study."""

from collections.abc import Mapping
from typing import Any

from medray.registry import card
from medray.reports.blocks import Block, Chart, Code, Details, Figure, Section, Table, Text
from medray.reports.charts import NARROW, WIDE, Bar, intervals
from medray.reports.study_data import StudyData, percent, short
from medray.types import DISCLAIMER


def audit(data: StudyData) -> Section | None:
    held = data.audit
    if not held:
        return None
    rows, num_rows = [], held["num_rows"]
    left_out = [
        (held["num_empty"], "with an empty text set aside"),
        (held.get("num_unlabelled", 0), "without a label left out"),
    ]
    rows.append(
        [
            "rows",
            f"{num_rows:,}"
            + "".join(f", and {number:,} {what}" for number, what in left_out if number),
        ]
    )
    rows.append(
        ["splits", ", ".join(f"{side} {number:,}" for side, number in held["splits"].items())]
    )
    rows.append(
        [
            "duplicates",
            (
                f"{held['exact_groups']:,} texts stand more than once, in {held['exact_rows']:,} "
                f"rows; {_near(held)}"
            ),
        ]
    )
    if num_mentions := held.get("num_mentions", 0):
        rows.append(
            [
                "mentions",
                (
                    f"{num_mentions:,}; rows with each kind: "
                    f"{', '.join(f'{k} {n:,}' for k, n in held['labels'].items())}"
                ),
            ]
        )
    if num_mentions or not held["labels"]:
        return Section(
            "data",
            "The data",
            [
                Table("What the data set is like", (), rows, left=frozenset({0, 1})),
                *_lengths(held, num_rows),
            ],
        )
    conflicts = (
        f"{held['conflicting_texts']:,} texts stand under different labels "
        f"({held['conflicting_rows']:,} rows)"
    )
    rows.append(
        [
            "conflicts",
            conflicts if held["conflicting_texts"] else "no text stands under different labels",
        ]
    )
    rows.append(
        [
            "ceiling",
            f"no classifier gets more than {percent(held['accuracy_ceiling'])} of the rows right",
        ]
    )
    constant = (
        f"accuracy {short(held['majority_accuracy'])}, macro F1 {short(held['majority_f1_macro'])}"
    )
    rows.append([f"always answering {held['majority_label']}", constant])
    blocks: list[Block] = [
        Table("What the data set is like", (), rows, left=frozenset({0, 1})),
        _labels(held["labels"], num_rows),
    ]
    return Section("data", "The data", [*blocks, *_lengths(held, num_rows)])


def _lengths(held: Mapping[str, Any], num_rows: int) -> list[Block]:
    if not held.get("tokens"):
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
        for source, of in held["tokens"].items()
    ]
    heads = ["base model", "mean", "median", "95th percentile", "longest", "cut or windowed"]
    return [Table("Lengths of the texts in tokens, by base model", heads, lines)]


def _near(held: Mapping[str, Any]) -> str:
    across = held.get("given_across")
    near = f"{held['near_groups']:,} groups of near duplicates hold {held['near_rows']:,} rows"
    return f"{near}; " + (
        f"{across} groups stand on two sides as given"
        if across
        else "none stands on two sides of the split"
    )


def _over(counts: Mapping[str, Any], num_rows: int) -> str:
    return (
        f"{counts['num_over']:,} over {counts['max_length']} "
        f"({percent(counts['num_over'] / num_rows, 0)})"
    )


def _labels(labels: Mapping[str, int], num_rows: int) -> Block:
    order = sorted(labels.items(), key=lambda item: -item[1])
    rows = [[label, f"{number:,}", percent(number / num_rows)] for label, number in order]
    table = Table("Rows of each label", ["label", "rows", "share"], rows)
    if not 2 < len(order) <= 40:
        return table
    bars = [Bar(label, float(number), series=0, shown=f"{number:,}") for label, number in order]
    says = "; ".join(f"{bar.label} {bar.shown}" for bar in bars) + "."
    drawn = [
        intervals("Rows of each label", says, bars, width=width, zero=True)
        for width in (WIDE, NARROW)
    ]
    return Details("Rows of each label", [Figure([Chart("labels", *drawn)]), table])


def repeat(data: StudyData) -> Section:
    publish = data.config.publish
    lines = [f"medray study {data.run}/study.yaml"]
    if publish:
        lines.append(f"medray verify {publish.name}@{publish.alias}")
    blocks: list[Block] = [Code("\n".join(lines))]
    if data.winner:
        blocks.append(
            Text(
                "The seeds fix splits, draws and first weights; which trials a scheduler stops "
                "early can depend on their timing. The winner:"
            )
        )
        rows = [list(line) for line in data.winner.origin]
        blocks.append(Table("Fingerprints of the winner", (), rows, left=frozenset({0, 1})))
        figures = [
            [held.metric, card.format_figure(held.validation), card.format_figure(held.test)]
            for held in data.winner.figures
        ]
        note = f" {data.winner.openings}" if data.winner.openings else ""
        caption = f"Every figure of the winner, as its model card tells it.{note}"
        behaviour = [Text(sentence, is_note=True) for sentence in data.winner.behavior]
        blocks.append(
            Details(
                "Every figure of the winner",
                [Table(caption, ["metric", "validation", "test"], figures), *behaviour],
            )
        )
    blocks.append(Details("study.yaml, every setting resolved", [Code(data.settings)]))
    blocks.append(Text(DISCLAIMER, is_note=True))
    return Section("repeat", "To repeat it", blocks)
