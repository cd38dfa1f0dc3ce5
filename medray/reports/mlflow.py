"""Logs a study to MLflow: a run of the study, a nested run per trial, and the release in MLflow's
model registry."""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import util
from pathlib import Path
from typing import Any

from medray.config.addresses import resolve
from medray.errors import ArtifactError, ConfigError
from medray.records import TrialRecord
from medray.reports.study_data import StudyData
from medray.storage import files as storage

MISSING = "MLflow is not installed; pip install 'medray[mlflow]'"
_MARK = "medray.run"  # the tag of a complete log
_MOST_PARAMS, _MOST_METRICS = 100, 1000  # the limits of one request to MLflow


@dataclass(frozen=True)
class PublishedRelease:
    """The release of the winner."""

    name: str
    version: int
    alias: str
    content_id: str
    folder: Path  # its checkpoint, on this machine


def is_installed() -> bool:
    return util.find_spec("mlflow") is not None


def log(
    data: StudyData, uri: str, *, mark: str, files: Sequence[Path], release: PublishedRelease | None
) -> str:
    """Log what MLflow does not have yet, and return the id of the study's run. `mark` identifies
    the state of the run on disk."""
    if not is_installed():
        raise ConfigError(MISSING)
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    with resolve(uri) as whole:
        try:
            return _log(
                MlflowClient(tracking_uri=whole, registry_uri=whole), data, mark, files, release
            )
        # Errors of requests are OSErrors; a wrong address raises a ValueError.
        except (MlflowException, OSError, ValueError) as err:
            if storage.is_full(err):
                raise
            reason = str(err).strip().splitlines()[0]
            raise ArtifactError(
                f"MLflow at {uri}: {reason}; check the address and the server"
            ) from None


def _log(
    client: Any, data: StudyData, mark: str, files: Sequence[Path], release: PublishedRelease | None
) -> str:
    match = client.get_experiment_by_name(data.board.study)
    experiment = match.experiment_id if match else client.create_experiment(data.board.study)
    runs = client.search_runs(
        [experiment], filter_string=f"tags.`{_MARK}` = '{mark}'", max_results=1
    )
    if runs:
        parent: str = runs[0].info.run_id
    else:
        parent = _study(client, experiment, data, mark, files)
    if release:
        _register(client, data, experiment, parent, release)
    return parent


def _study(client: Any, experiment: str, data: StudyData, mark: str, files: Sequence[Path]) -> str:
    starts = [record.started_at for record in data.records if record.started_at]
    start = min(starts, default=time.time())
    run: str = client.create_run(
        experiment, start_time=int(1000 * start), run_name=data.run.rsplit("/", 1)[-1]
    ).info.run_id
    for record in data.records:
        _trial(client, experiment, run, data, record)
    best = data.board.best
    figures = {
        f"{split}/{name}": value
        for split, of in (("validation", best.validation), ("test", best.test))
        for name, value in of.items()
    }
    _write(
        client,
        run,
        {"metric": data.metric, "winner": best.name, "base_model": best.base_model},
        _metrics(figures, 0, start),
    )
    for path in files:
        client.log_artifact(run, str(path))
    client.set_tag(run, _MARK, mark)  # last, since it marks a complete log
    client.set_terminated(run, "FINISHED")
    return run


def _trial(client: Any, experiment: str, parent: str, data: StudyData, record: TrialRecord) -> None:
    start = record.started_at or time.time()
    tags = {
        "mlflow.parentRunId": parent,
        "medray.trial": record.trial,
        **({"medray.error": record.error} if record.error else {}),
    }
    run = client.create_run(
        experiment, start_time=int(1000 * start), run_name=record.trial, tags=tags
    ).info.run_id
    metrics = [
        metric
        for evaluation in data.histories.get(record.trial, ())
        for metric in _metrics(
            {f"validation/{name}": value for name, value in evaluation.metrics.items()}
            | {"training/loss": evaluation.train_loss},
            evaluation.step,
            start + evaluation.seconds,
        )
    ]
    _write(client, run, {"base_model": record.base_model, **record.settings}, metrics)
    end = int(1000 * record.ended_at) if record.ended_at else None
    client.set_terminated(run, "FAILED" if record.status == "failed" else "FINISHED", end_time=end)


def _metrics(figures: dict[str, float], step: int, at: float) -> Iterator[Any]:
    from mlflow.entities import Metric

    for name, value in figures.items():
        if math.isfinite(value):
            yield Metric(name, float(value), int(1000 * at), step)


def _write(
    client: Any, run: str, settings: dict[str, Any], metrics: Iterator[Any] | Sequence[Any]
) -> None:
    from mlflow.entities import Param

    params, figures = [Param(path, str(value)) for path, value in settings.items()], list(metrics)
    for start in range(0, len(params), _MOST_PARAMS):
        client.log_batch(run, params=params[start : start + _MOST_PARAMS])
    for start in range(0, len(figures), _MOST_METRICS):
        client.log_batch(run, metrics=figures[start : start + _MOST_METRICS])


def _register(
    client: Any, data: StudyData, experiment: str, parent: str, release: PublishedRelease
) -> None:
    """Store the checkpoint with the winner's run, and register it as a model version once."""
    if not client.search_registered_models(filter_string=f"name = '{release.name}'"):
        client.create_registered_model(release.name)
    versions = client.search_model_versions(f"name = '{release.name}'")
    if any(version.tags.get("medray.content_id") == release.content_id for version in versions):
        return
    winner = (
        f"tags.`mlflow.parentRunId` = '{parent}' and tags.`medray.trial` = '{data.board.winner}'"
    )
    run = client.search_runs([experiment], filter_string=winner, max_results=1)[0].info
    client.log_artifacts(run.run_id, str(release.folder), "release")
    tags = {
        "medray.content_id": release.content_id,
        "medray.release": f"{release.name}@{release.version}",
    }
    version = client.create_model_version(
        release.name, f"{run.artifact_uri}/release", run.run_id, tags=tags
    )
    client.set_registered_model_alias(release.name, release.alias, version.version)
