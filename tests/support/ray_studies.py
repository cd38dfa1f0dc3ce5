"""Studies on the tests' Ray."""

from support.watcher import Seen

from medray.config.study import StudyConfig
from medray.runtime.cluster import Cluster
from medray.study import study as studies
from medray.study.run import Run
from medray.study.study import Outcome


def whole(cluster: Cluster) -> str:
    """The setting of a trial that takes every CPU: the next one runs in its process, which has
    imported what it needs."""
    return f"resources.cpus_per_worker={int(cluster.cpus)}"


def run(
    study: StudyConfig,
    cluster: Cluster,
    seen: Seen | None = None,
    here: Run | None = None,
    **options: bool,
) -> Outcome:
    return studies.run(study, cluster, here or Run.start(study), watcher=seen or Seen(), **options)
