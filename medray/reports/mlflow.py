"""A study in MLflow: a run for the study, one below it for each trial, and the release in its model
registry."""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import util
from pathlib import Path
from typing import Any

from medray.config.addresses import resolved
from medray.errors import ArtifactError, ConfigError
from medray.records import TrialRecord
from medray.reports.study_data import StudyData
from medray.storage import files as storage

MISSING = "MLflow is asked for and not installed: pip install 'medray[mlflow]'"
_MARK = "medray.run"  # tag of what was logged already
_MOST_PARAMS, _MOST_METRICS = 100, 1000  # that MLflow takes at once


@dataclass(frozen=True)
class Published:
    """The release of the winner."""

    name: str
    version: int
    alias: str
    content_id: str
    folder: Path  # its checkpoint, on this machine


def is_installed() -> bool:
    return util.find_spec("mlflow") is not None


def log(
    data: StudyData, uri: str, *, mark: str, files: Sequence[Path], release: Published | None
) -> str:
    """Log what is not there yet, and return the id of the study's run; `mark` tells one state of a
    run from another."""
    if not is_installed():
        raise ConfigError(MISSING)
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    with resolved(uri) as whole:
        try:
            return _log(
                MlflowClient(tracking_uri=whole, registry_uri=whole), data, mark, files, release
            )
        except (
            MlflowException,
            OSError,
            ValueError,
        ) as err:  # of requests are OSErrors, and what is no address is a ValueError
            if storage.is_full(err):
                raise
            raise ArtifactError(f"MLflow at {uri}: {str(err).strip().splitlines()[0]}") from None


def _log(
    client: Any, data: StudyData, mark: str, files: Sequence[Path], release: Published | None
) -> str:
    known = client.get_experiment_by_name(data.board.study)
    experiment = known.experiment_id if known else client.create_experiment(data.board.study)
    logged = client.search_runs(
        [experiment], filter_string=f"tags.`{_MARK}` = '{mark}'", max_results=1
    )
    if logged:
        parent: str = logged[0].info.run_id
    else:
        parent = _study(client, experiment, data, mark, files)
    if release:
        _register(client, data, experiment, parent, release)
    return parent


def _study(client: Any, experiment: str, data: StudyData, mark: str, files: Sequence[Path]) -> str:
    began = [record.started_at for record in data.records if record.started_at]
    started = min(began, default=time.time())
    run: str = client.create_run(
        experiment, start_time=int(1000 * started), run_name=data.run.rsplit("/", 1)[-1]
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
        _metrics(figures, 0, started),
    )
    for path in files:
        client.log_artifact(run, str(path))
    client.set_tag(run, _MARK, mark)  # last: it says that all of it is there
    client.set_terminated(run, "FINISHED")
    return run


def _trial(client: Any, experiment: str, parent: str, data: StudyData, record: TrialRecord) -> None:
    started = record.started_at or time.time()
    tags = {
        "mlflow.parentRunId": parent,
        "medray.trial": record.trial,
        **({"medray.error": record.error} if record.error else {}),
    }
    run = client.create_run(
        experiment, start_time=int(1000 * started), run_name=record.trial, tags=tags
    ).info.run_id
    measured = [
        metric
        for evaluation in data.histories.get(record.trial, ())
        for metric in _metrics(
            {f"validation/{name}": value for name, value in evaluation.metrics.items()}
            | {"training/loss": evaluation.train_loss},
            evaluation.step,
            started + evaluation.seconds,
        )
    ]
    _write(client, run, {"base_model": record.base_model, **record.settings}, measured)
    ended = int(1000 * record.ended_at) if record.ended_at else None
    client.set_terminated(
        run, "FAILED" if record.status == "failed" else "FINISHED", end_time=ended
    )


def _metrics(figures: dict[str, float], step: int, at: float) -> Iterator[Any]:
    from mlflow.entities import Metric

    for name, value in figures.items():
        if math.isfinite(value):
            yield Metric(name, float(value), int(1000 * at), step)


def _write(
    client: Any, run: str, settings: dict[str, Any], metrics: Iterator[Any] | Sequence[Any]
) -> None:
    from mlflow.entities import Param

    params, measured = [Param(path, str(value)) for path, value in settings.items()], list(metrics)
    for start in range(0, len(params), _MOST_PARAMS):
        client.log_batch(run, params=params[start : start + _MOST_PARAMS])
    for start in range(0, len(measured), _MOST_METRICS):
        client.log_batch(run, metrics=measured[start : start + _MOST_METRICS])


def _register(
    client: Any, data: StudyData, experiment: str, parent: str, release: Published
) -> None:
    """The checkpoint is kept with the winner's run; a version of it is made once."""
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
    made = client.create_model_version(
        release.name, f"{run.artifact_uri}/release", run.run_id, tags=tags
    )
    client.set_registered_model_alias(release.name, release.alias, made.version)
