"""`medray.Study` and `medray.fit`: a study from Python, and the search that the command line runs
too."""

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, redirect_stdout
from dataclasses import dataclass, field
from html import escape
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from rich.console import Console

from medray.config.files import merge, put_all, read_yaml
from medray.config.load import study_of
from medray.config.study import StudyConfig
from medray.data import frames, guess
from medray.data.columns import Hints
from medray.data.first_study import first_study
from medray.data.formats.base.parsing import as_text
from medray.errors import ConfigError, suggest
from medray.errors.redaction import redact_settings
from medray.python.notebook import is_notebook, live_table
from medray.python.result import Result
from medray.storage import files

if TYPE_CHECKING:
    from medray.data.audit import Audit
    from medray.study.estimate import StudyEstimate
    from medray.study.run import Run
    from medray.study.study import Outcome


@dataclass(frozen=True, repr=False)
class Study:
    """A study of one data set over several base models: its settings, ready to run.

    `config` is a path of a YAML file, a mapping of the same settings, another study, or its
    `config`. Keywords replace settings: sections as mappings, or names with dots.

    >>> study = medray.Study("study.yaml", train={"epochs": 1}, **{"lora.r": 8})
    >>> study.config.lora.r
    8
    >>> print(study.audit()[0].render().splitlines()[0])
    60 rows
    """

    settings: Mapping[str, Any]  # what the user set
    config: StudyConfig = field(compare=False)

    def __init__(
        self, config: "str | Path | Mapping[str, Any] | StudyConfig | Study", **settings: Any
    ):
        raw, where = _raw(config)
        values = _plain(settings)
        raw = merge(raw, {name: value for name, value in values.items() if "." not in name})
        put_all(raw, [(name, value, name) for name, value in values.items() if "." in name])
        object.__setattr__(self, "settings", raw)
        object.__setattr__(self, "config", study_of(raw, where))

    @property
    def yaml(self) -> str:
        """The YAML that repeats this study, without secrets."""
        text: str = yaml.safe_dump(
            redact_settings(_plain(self.settings)), sort_keys=False, allow_unicode=True
        )
        return text

    def __repr__(self) -> str:
        return self.yaml.rstrip("\n")

    def _repr_html_(self) -> str:
        return f"<pre>{escape(self.yaml)}</pre>"

    def audit(self) -> "list[Audit]":
        """Report on the data, once per base model: balance, lengths, duplicates, conflicts. A
        report prints as text."""
        from medray.study import materials, preflight

        preflight.check(self.config)
        return list(materials.audit(self.config))

    def plan(self) -> "StudyEstimate":
        """Estimate memory, parallel trials and hours on this machine without loading weights. The
        estimate prints as a table."""
        from medray.runtime.cluster import Cluster, Node
        from medray.study.estimate import Speed, estimate

        memory_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        node = Node(float(os.cpu_count() or 1), 0.0)
        return estimate(
            self.config,
            Cluster((node,), None, is_joined=False),
            memory_bytes=memory_bytes,
            speed=Speed(None, None),
        )

    def run(self, *, watch: bool = True) -> Result:
        """Search, rank, test and publish, as `medray study` does. `watch` shows the progress."""
        return self._run(watch, resume=False, retry_failed=False)

    def resume(self, *, watch: bool = True, retry_failed: bool = False) -> Result:
        """Continue the latest run of this study, or extend it where the settings have gained
        trials, base models or seeds. `retry_failed` also repeats the trials that failed."""
        return self._run(watch, resume=True, retry_failed=retry_failed)

    def _run(self, watch: bool, *, resume: bool, retry_failed: bool) -> Result:
        from medray.study import preflight
        from medray.study.run import Run

        preflight.check(self.config, resume=resume)
        run = Run.resume(self.config) if resume else Run.start(self.config)
        with ExitStack() as stack:
            if not watch or is_notebook():
                null = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
                stack.enter_context(redirect_stdout(null))
            outcome = search(self.config, run, retry_failed, in_notebook=watch and is_notebook())
        if outcome.refusal:
            logging.getLogger(__name__).warning("%s", outcome.refusal)
        return Result(run.folder, outcome.release)


def fit(
    data: Any,
    /,
    *,
    text: str | int | Sequence[str | int],
    label: str | int,
    name: str = "python",
    id: str | int | None = None,
    positive: str | int | None = None,
    metric: str | None = None,
    base_models: str | Sequence[str] = (),
    budget_minutes: float | None = None,
    storage_path: str | Path = "runs",
    watch: bool = True,
    **settings: Any,
) -> Result:
    """Write a first study of a table, run it and return its result.

    `data` is a DataFrame of pandas or polars, a `datasets.Dataset`, an Arrow table, a mapping of
    columns or a list of rows. Its rows are stored once below `storage_path`. Texts of several
    columns are joined. Labels such as 0 and 1 become the texts '0' and '1'. Of two labels,
    `positive` is the one that the figures describe; a metric such as f1_macro needs none. Without
    `base_models`, the one of `medray init` is trained. `budget_minutes` bounds the search. A second
    `fit` of the same name is another run of it. Further keywords are settings, as in `Study`.

    >>> result = medray.fit(rows, text="text", label="label", metric="f1_macro", **quick)
    >>> result.figures["f1_macro"] <= 1
    True
    """
    storage_path = files.check_place(storage_path, "storage_path")
    study = study_of_table(
        data,
        text=frames.column_names(text),
        label=str(label),
        id=None if id is None else str(id),
        name=name,
        positive=None if positive is None else as_text(_plain(positive)),
        metric=metric,
        storage_path=storage_path,
    )
    if base_models:
        is_one = isinstance(base_models, str) or not isinstance(base_models, Iterable)
        sources = [base_models] if is_one else base_models
        study = Study(study, base_models=[_base_model(source) for source in sources])
    if budget_minutes is not None:
        if isinstance(budget_minutes, bool) or not isinstance(budget_minutes, Real):
            raise ConfigError(f"budget_minutes: {budget_minutes!r:.60} is no number; give minutes")
        study = Study(study, **{"search.time_s": 60.0 * float(budget_minutes)})
    study = Study(study, **settings)
    path = files.absolute(storage_path) / f"{name}.yaml"
    files.write(path, study.yaml.encode())
    if watch:
        print(f"# {path} repeats this study: medray study {path}\n{study.yaml}", flush=True)
    return study.run(watch=watch)


def study_of_table(
    data: Any,
    *,
    text: Sequence[str],
    label: str,
    id: str | None,
    name: str,
    positive: str | None,
    metric: str | None,
    storage_path: str,
) -> Study:
    """Store the rows of a table, and return the study that `medray init` would write for them."""
    content = frames.to_parquet(data, text, label, id)
    path = files.absolute(storage_path) / "tables" / f"{files.hash_bytes(content)[:16]}.parquet"
    files.create(path, content)
    sketch = guess.sketch(str(path), Hints(tuple(text), label, id))
    is_binary = len(sketch.labels) == 2 and not (sketch.multi_label or sketch.has_mentions)
    if is_binary and positive is None and metric in (None, "f1_binary"):
        raise ConfigError(
            f"label {label!r}: there are two labels, {guess.render_counts(sketch.labels)}; "
            "name the one that F1 is about, as in positive='LABEL', or give metric='f1_macro'"
        )
    if is_binary and positive is not None and positive not in sketch.labels:
        raise ConfigError(f"positive: {positive!r} is no label; {suggest(positive, sketch.labels)}")
    # As in scikit-learn, the last of two labels is the positive one, where the metric names none.
    positive = max(sketch.labels) if is_binary and positive is None else positive
    raw = yaml.safe_load(first_study(sketch, str(path), positive))
    if metric is not None:
        raw["task"]["metric"] = metric
    raw |= {"name": name, "storage_path": storage_path}
    raw["publish"]["name"] = name
    return Study(raw)


def _base_model(source: Any) -> Any:
    return source if isinstance(source, Mapping) else {"source": source}


def search(
    config: StudyConfig, run: "Run", retry_failed: bool, *, in_notebook: bool = False
) -> "Outcome":
    """Run a study on Ray with its progress, and write its report."""
    from medray.reports import html_report
    from medray.reports.study_data import gather
    from medray.reports.tensorboard import TensorBoard
    from medray.runtime.cluster import start_cluster
    from medray.study.progress import Progress, Watchers
    from medray.study.run import LEADERBOARD
    from medray.study.study import metric
    from medray.study.study import run as run_study

    open_statuses = ("running", "failed") if retry_failed else ("running",)
    num_before = sum(record.status not in open_statuses for record in run.records())
    with ExitStack() as stack:
        progress = stack.enter_context(
            Progress(metric(config), Console(), num_before, run.folder / "trials")
        )
        if in_notebook:
            stack.enter_context(live_table(progress))
        progress.stage("starting Ray")
        cluster = stack.enter_context(start_cluster())
        if cluster.dashboard:
            print(
                f"Ray dashboard: {cluster.dashboard}    TensorBoard: tensorboard --logdir "
                f"{run.folder}",
                flush=True,
            )
        try:
            with TensorBoard(run.folder, metric(config)) as board:
                return run_study(
                    config,
                    cluster,
                    run,
                    watcher=Watchers(progress, [board]),
                    retry_failed=retry_failed,
                )
        finally:
            if (run.folder / LEADERBOARD).exists():
                page = html_report.compose(gather(run))
                html_report.write(page, run.folder / html_report.REPORT)


def _raw(
    config: str | Path | Mapping[str, Any] | StudyConfig | Study,
) -> tuple[dict[str, Any], str]:
    """Return settings as a mapping, and their place for errors."""
    if isinstance(config, Study):
        return _plain(config.settings), f"study {config.config.name}"
    if isinstance(config, StudyConfig):
        return config.model_dump(mode="json", exclude_unset=True), f"study {config.name}"
    if isinstance(config, Mapping):
        return _plain(config), "the settings"
    path = files.check_place(config, "Study")
    if "\n" in path:
        raise ConfigError("Study: is a text of several lines; give a path, or yaml.safe_load(text)")
    return read_yaml(Path(path)), path


def _plain(value: Any) -> Any:
    """Return a copy of settings with the types of YAML alone."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    return str(value) if isinstance(value, Path | str) else value
