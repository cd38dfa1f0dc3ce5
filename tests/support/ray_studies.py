"""Runs studies on the Ray cluster of the tests."""

from support.watcher import RecordingWatcher

from medray.config.study import StudyConfig
from medray.runtime.cluster import Cluster
from medray.study import study as studies
from medray.study.run import Run
from medray.study.study import Outcome


def whole(cluster: Cluster) -> str:
    """Return the setting with which a trial takes every CPU, so that the next trial runs in the
    same process and saves the imports."""
    return f"resources.cpus_per_worker={int(cluster.cpus)}"


def run(
    study: StudyConfig,
    cluster: Cluster,
    watcher: RecordingWatcher | None = None,
    here: Run | None = None,
    **options: bool,
) -> Outcome:
    return studies.run(
        study, cluster, here or Run.start(study), watcher=watcher or RecordingWatcher(), **options
    )
