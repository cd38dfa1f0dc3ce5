"""A leaderboard as files and tables: JSON, CSV, Markdown, a table for a terminal."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from medray.errors import ArtifactError
from medray.evaluation import analysis
from medray.evaluation.analysis import Analysis
from medray.evaluation.bootstrap import Comparison, Interval
from medray.evaluation.leaderboard import Entry, Leaderboard, Pairing, merge_of
from medray.evaluation.pooling import Seeds
from medray.evaluation.service_use import ServiceUse
from medray.records import Evaluation
from medray.text.csv_text import write_table

if TYPE_CHECKING:
    from rich.table import Table


SCHEMA_VERSION = 1
_TEXT = ("name", "base model", "settings")  # columns that are aligned to the left


def to_json(board: Leaderboard) -> str:
    return json.dumps(
        {"schema_version": SCHEMA_VERSION, **asdict(board)}, indent=1, ensure_ascii=False
    )


def from_json(text: str, where: str) -> Leaderboard:
    try:
        raw = json.loads(text)
        if raw.pop("schema_version") != SCHEMA_VERSION:
            raise ArtifactError(
                f"{where}: another version of medray wrote it; read it with that version"
            )
        entries = tuple(
            Entry(
                **{
                    **entry,
                    "test_interval": _interval(entry["test_interval"]),
                    "seeds": _seeds(entry.get("seeds")),
                    "service": ServiceUse(**use) if (use := entry.get("service")) else None,
                }
            )
            for entry in raw.pop("entries")
        )
        pairs = tuple(
            Pairing(**{**pair, "comparison": Comparison(**pair["comparison"])})
            for pair in raw.pop("comparisons")
        )
        return Leaderboard(
            **{**raw, "tied": tuple(raw["tied"])}, entries=entries, comparisons=pairs
        )
    except (ValueError, KeyError, TypeError) as err:
        raise ArtifactError(
            f"{where}: not a valid leaderboard ({err}); restore it from a copy of the run"
        ) from None


def rows(board: Leaderboard) -> Iterator[dict[str, Any]]:
    """Yield one flat row per entry, in which each metric has its split's name."""
    for place, entry in enumerate(board.entries, start=1):
        low, high = (
            (entry.test_interval.low, entry.test_interval.high)
            if entry.test_interval
            else (None, None)
        )
        yield {
            "place": place,
            "name": entry.name,
            "kind": entry.kind,
            "is_winner": entry.name == board.winner,
            "base_model": entry.base_model,
            "status": entry.status,
            "epoch": entry.epoch,
            "step": entry.step,
            f"validation_{board.metric}": entry.validation.get(board.metric),
            f"test_{board.metric}": entry.test.get(board.metric),
            f"test_{board.metric}_low": low,
            f"test_{board.metric}_high": high,
            **{
                f"validation_{name}": value
                for name, value in entry.validation.items()
                if name != board.metric
            },
            **{f"test_{name}": value for name, value in entry.test.items() if name != board.metric},
            "num_seeds": entry.seeds.num_seeds if entry.seeds else 1,
            "num_parameters": entry.num_parameters,
            "num_trainable": entry.num_trainable,
            "seconds": entry.seconds,
            "seconds_to_first_step": entry.seconds_to_first_step,
            "ms_per_row": entry.ms_per_row,
            **(entry.service.columns() if entry.service else {}),
            **{f"settings.{path}": value for path, value in entry.settings.items()},
            "checkpoint": entry.checkpoint,
            "error": entry.error,
        }


def to_csv(rows: Iterable[Mapping[str, Any]]) -> str:
    """Write rows with differing keys as CSV; a key that a row lacks is an empty cell."""
    table = list(rows)
    return write_table(list(dict.fromkeys(name for row in table for name in row)), table)


def history_rows(histories: Mapping[str, Sequence[Evaluation]]) -> Iterator[dict[str, Any]]:
    """Yield one row per evaluation of each trial."""
    for trial, history in histories.items():
        for evaluation in history:
            yield {
                "trial": trial,
                "epoch": evaluation.epoch,
                "step": evaluation.step,
                "train_loss": evaluation.train_loss,
                "validation_loss": evaluation.metrics.get("log_loss"),
                **{
                    f"validation_{name}": value
                    for name, value in evaluation.metrics.items()
                    if name != "log_loss"
                },
                "seconds": evaluation.seconds,
                "tokens_per_s": evaluation.tokens_per_s,
                **({"is_early": True} if evaluation.is_early else {}),
            }


def to_markdown(board: Leaderboard, winner_analysis: Analysis | None = None) -> str:
    heads, body = cells(board)
    lines = [
        f"# {board.study}",
        "",
        *(f"- {sentence}" for sentence in sentences(board, winner_analysis)),
        "",
    ]
    lines += [
        "| " + " | ".join(heads) + " |",
        "| " + " | ".join("--- " if head in _TEXT else "---:" for head in heads) + " |",
    ]
    lines += ["| " + " | ".join(row) + " |" for row in body]
    errors = [f"- {entry.name} failed: {entry.error}" for entry in board.entries if entry.error]
    return "\n".join([*lines, *(["", *errors] if errors else [])]) + "\n"


def rich_table(board: Leaderboard) -> "Table":
    """Return the leaderboard as a table for a terminal."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    heads, body = cells(board)
    for head in heads:
        table.add_column(head, justify="left" if head in _TEXT else "right", overflow="fold")
    for row in body:
        table.add_row(*row)
    return table


def cells(board: Leaderboard) -> tuple[list[str], list[list[str]]]:
    """Return the table for readers: the headings, and one row per entry."""
    metric = board.metric
    heads = [
        "",
        "name",
        "base model",
        "best epoch",
        f"validation {metric}",
        f"test {metric} (95 %)",
    ]
    heads += ["parameters", "trainable", "training s", "test ms/row"]
    has_services = any(entry.service for entry in board.entries)
    heads += ["tokens", "cost"] * has_services + ["settings"]
    body = []
    for place, entry in enumerate(board.entries, start=1):
        name = f"{entry.name} (winner)" if entry.name == board.winner else entry.name
        row = [
            str(place),
            name
            + (f" (mean of {entry.seeds.num_seeds} seeds)" if entry.seeds else "")
            + (f" ({entry.status})" if entry.status in ("failed", "stopped", "running") else ""),
            entry.base_model,
            _cell(entry.epoch, "d"),
            _cell(entry.validation.get(metric), ".4f"),
            _cell(entry.test.get(metric), ".4f")
            + (f" [{_range(entry.test_interval)}]" if entry.test_interval else ""),
            _cell(entry.num_parameters, ",d"),
            _cell(entry.num_trainable, ",d"),
            _cell(entry.seconds, ".0f"),
            _cell(entry.ms_per_row, ".1f"),
            *(entry.service.cells() if entry.service else ["", ""] * has_services),
            ", ".join(f"{path}={_value(value)}" for path, value in entry.settings.items()),
        ]
        body.append(row)
    return heads, body


def sentences(board: Leaderboard, winner_analysis: Analysis | None = None) -> list[str]:
    """Describe the leaderboard and the analysis of its winner in sentences."""
    best, metric = board.best, board.metric
    spread = f" (95 % interval {_range(best.test_interval)})" if best.test_interval else ""
    lines = [
        f"winner: {best.name}, {best.base_model}, epoch {best.epoch}: {metric} "
        f"{best.validation[metric]:.4f} on {board.num_rows['validation']} validation rows, which "
        f"chose it, and {best.test[metric]:.4f}{spread} on {board.num_rows['test']} test rows"
    ]
    if best.seeds:
        figures = ", ".join(
            f"{validation:.4f} / {test:.4f}"
            for validation, test in zip(best.seeds.validation, best.seeds.test, strict=True)
        )
        lines.append(
            f"the winner's figures are means over {best.seeds.num_seeds} seeds ({metric}, "
            f"validation / test: {figures}); its checkpoint is that of {best.seeds.published}, the "
            "best on validation rows"
        )
    if board.num_folds > 1:
        lines.append(
            f"each row was a test row in one of {board.num_folds} folds, predicted by a model that "
            "was not trained on it; the figures are of all folds together; the first fold alone "
            "chose the settings and gives the checkpoint"
        )
    if merge := merge_of(best, metric):
        lines.append(
            f"the winner has a validation {merge.metric} of {merge.unmerged:.4f} in 4 bits, and of "
            f"{merge.merged:.4f} merged into plain weights"
        )
    if board.tied:
        lines.append(
            f"tie: validation rows cannot separate {', '.join(board.tied)}; {board.tie_break}"
        )
    for pair in board.main_comparisons:
        comparison = pair.comparison
        verdict = (
            "the rows cannot separate the two"
            if pair.is_tie
            else "better"
            if comparison.difference > 0
            else "worse"
        )
        lines.append(
            f"winner minus {board.title(pair.other)} on the same {pair.split} rows: {metric} "
            f"{comparison.difference:+.4f} (95 % interval {comparison.low:+.4f} to "
            f"{comparison.high:+.4f}): {verdict}"
        )
    lines += [entry.service.sentence(entry.name) for entry in board.entries if entry.service]
    lines += analysis.sentences(winner_analysis.best) if winner_analysis else []
    if best.test_interval is None:
        lines.append(
            f"{metric} has no interval and no paired comparison, so ties are not detected and the "
            "better figure wins"
        )
    if board.num_openings > 1:
        lines.append(
            f"the labels of these test rows were read {board.num_openings} times; each further use "
            "makes the test figures more optimistic"
        )
    return lines


def _seeds(values: Mapping[str, Any] | None) -> Seeds | None:
    if values is None:
        return None
    return Seeds(
        tuple(values["trials"]),
        tuple(values["validation"]),
        tuple(values["test"]),
        values["published"],
    )


def _interval(values: Mapping[str, float] | None) -> Interval | None:
    return None if values is None else Interval(**values)


def _range(interval: Interval) -> str:
    return f"{interval.low:.3f} to {interval.high:.3f}"


def _cell(value: float | int | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
