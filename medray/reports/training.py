"""The sections of a report on training: curves and metrics of every epoch, settings and cost
against quality."""

from collections.abc import Callable, Sequence

from medray.config.search import Axis
from medray.evaluation.leaderboard import Entry
from medray.evaluation.metrics import higher_is_better
from medray.records import Evaluation
from medray.reports.blocks import (
    Block,
    Chart,
    ChartFigure,
    Details,
    Paragraph,
    ReportSection,
    ReportTable,
)
from medray.reports.charts import Curve, Spot, lines, scatter
from medray.reports.ranking import keys
from medray.reports.study_data import (
    StudyData,
    axis_name,
    base_name,
    duration,
    metric_name,
    setting,
    short,
)
from medray.reports.svg import Drawing

_FEW_ROWS = 12
_FITS = (("log_loss", "log loss"), ("perplexity", "perplexity"))  # lower is better
_SHARES = (
    ("accuracy", "accuracy"),
    ("accuracy_subset", "accuracy"),
    ("token_f1", "token F1"),
    ("refusal_f1", "refusal F1"),
)


def curves(data: StudyData) -> ReportSection | None:
    histories = {name: rows for name, rows in data.histories.items() if rows}
    if not histories:
        return None
    charts = []
    figures = [
        (data.metric, data.metric_name),
        *((name, label) for name, label in _FITS if name != data.metric),
    ]
    for number, base in enumerate(data.config.base_models):
        mine = [
            record.trial
            for record in data.records
            if record.base == number and record.trial in histories
        ]
        for metric, name in figures:
            trial_curves = [
                curve for trial in mine if (curve := _curve(data, trial, number, metric)).points
            ]
            if not trial_curves:
                continue
            title = f"{base_name(base.source)}: validation {name}"
            ends = [f"{curve.label} ends at {curve.points[-1][1]:.3f}" for curve in trial_curves]
            drawing = lines(
                title,
                "; ".join(ends) + ".",
                trial_curves,
                x_label="epoch",
                y_top=1.0 if higher_is_better(metric) else None,
                y_bottom=0.0,
            )
            charts.append(Chart(f"curves-{number}-{metric}", drawing))
    blocks: list[Block] = [
        ChartFigure(
            charts,
            "Each line is a trial, and each dot an evaluation. The solid line with a number is "
            "the winner.",
            keys(data)[: len(data.config.base_models)],
        )
    ]
    rows = [line for trial, history in histories.items() for line in _rows(data, trial, history)]
    table = ReportTable("Every evaluation of every trial", _heads(data), rows, left=frozenset({0}))
    blocks.append(
        table
        if len(rows) <= _FEW_ROWS
        else Details(f"Every evaluation of every trial ({len(rows)} rows)", [table])
    )
    return ReportSection("training", "Training", blocks)


def _curve(data: StudyData, trial: str, number: int, metric: str) -> Curve:
    points = (
        (row.epochs, row.metrics.get(metric))
        for row in data.histories[trial]
        if not row.is_early  # on part of the rows
    )
    numbers = tuple(
        (at, float(value)) for at, value in points if value is not None and value == value
    )
    is_winner = trial == data.board.winner
    return Curve(
        trial, numbers, trial.rsplit("-", 1)[-1] if is_winner else "", number, is_strong=is_winner
    )


def _heads(data: StudyData) -> list[str]:
    name = "validation " + metric_name(
        data.metric, getattr(data.config.task, "positive_label", None)
    )
    others = [f"validation {label}" for _, label in _other_metrics(data)]
    return ["trial", "epoch", "step", "training loss", name, *others, "time", "tokens/s"]


def _other_metrics(data: StudyData) -> list[tuple[str, str]]:
    """List the metrics of the task other than the study's metric, with their labels."""
    names = {
        name for history in data.histories.values() for row in history for name in row.metrics
    } - {data.metric}
    return [(name, label) for name, label in (*_FITS, *_SHARES) if name in names]


def _rows(data: StudyData, trial: str, history: Sequence[Evaluation]) -> list[list[str]]:
    return [
        [
            trial,
            f"{row.epochs:g}",
            str(row.step),
            short(row.train_loss),
            short(row.metrics.get(data.metric)),
            *(short(row.metrics.get(name)) for name, _ in _other_metrics(data)),
            duration(row.seconds),
            f"{row.tokens_per_s:,.0f}",
        ]
        for row in history
    ]


def hyperparameters(data: StudyData) -> ReportSection | None:
    trials = [entry for entry in data.trials if data.metric in entry.validation]
    paths = list(dict.fromkeys(path for entry in trials for path in entry.settings))
    charts = []
    for number, base in enumerate(data.config.base_models):
        for path in paths:
            base_entries = [
                entry for entry in trials if data.series(entry) == number and path in entry.settings
            ]
            if len({repr(entry.settings[path]) for entry in base_entries}) > 1:
                charts.append(
                    Chart(
                        f"setting-{number}-{path}",
                        _against(data, path, base_entries, base_name(base.source)),
                    )
                )
    if not charts:
        return None
    caption = (
        f"{data.metric_name} on validation rows at each trial's best epoch, by each setting of the "
        "search. Stopped trials had fewer epochs than others."
    )
    return ReportSection(
        "settings",
        "Settings against quality",
        [ChartFigure(charts, caption, keys(data)[: len(data.config.base_models)])],
    )


def _against(data: StudyData, path: str, entries: Sequence[Entry], base: str) -> Drawing:
    name = axis_name(path)
    values = [entry.settings[path] for entry in entries]
    axes: list[Axis] = [
        axis
        for base in data.config.base_models
        for at, axis in data.config.space(base).items()
        if at == path
    ]
    are_numbers = all(
        isinstance(value, (int, float)) and not isinstance(value, bool) for value in values
    )
    is_choice = not are_numbers or any(axis.is_finite for axis in axes)
    order = sorted(
        entries,
        key=lambda entry: entry.settings[path] if are_numbers else str(entry.settings[path]),
    )
    spots = [
        Spot(
            setting(entry.settings[path]) if is_choice else float(entry.settings[path]),
            entry.validation[data.metric],
            entry.name,
            data.series(entry),
            entry.name == data.board.winner,
        )
        for entry in order
    ]
    description = "; ".join(
        f"{spot.label}: {setting(entry.settings[path])}, {spot.y:.3f}"
        for spot, entry in zip(spots, order, strict=True)
    )
    return scatter(f"{base}: {name}", f"{description}.", spots, x_label=name, log=True)


def cost(data: StudyData) -> ReportSection | None:
    trials = [entry for entry in data.trials if data.metric in entry.validation]
    measures: list[tuple[str, str, Sequence[Entry], Callable[[Entry], float | None], str]] = [
        ("seconds", "seconds of training", trials, lambda entry: entry.seconds, "validation"),
        ("parameters", "parameters", trials, lambda entry: entry.num_parameters, "validation"),
        (
            "latency",
            "milliseconds per text",
            data.board.entries,
            lambda entry: entry.ms_per_row,
            "test",
        ),
    ]
    charts = []
    for name, label, entries, measure, split in measures:
        spots = []
        for entry in entries:
            cost_value = measure(entry)
            value = (entry.test if split == "test" else entry.validation).get(data.metric)
            if cost_value and value is not None:
                spots.append(
                    Spot(
                        float(cost_value),
                        value,
                        entry.name,
                        data.series(entry),
                        entry.name == data.board.winner,
                    )
                )
        if len(spots) > 1:
            description = (
                "; ".join(f"{spot.label}: {spot.x:.3g}, {spot.y:.3f}" for spot in spots) + "."
            )
            drawing = scatter(
                f"{split.capitalize()} {data.metric_name} by {label}",
                description,
                spots,
                x_label=label,
                log=True,
            )
            charts.append(Chart(f"cost-{name}", drawing))
    if not charts:
        return None
    note = Paragraph(
        "Milliseconds per text were measured on the machine of the study, which predicted the test "
        "rows one batch after another.",
        is_note=True,
    )
    caption = (
        "Higher is better, and further left is cheaper. The scales of cost are logarithmic. "
        "The filled dot is the winner."
    )
    return ReportSection(
        "cost", "Cost against quality", [ChartFigure(charts, caption, keys(data)), note]
    )
