"""Repeats of finalists with other seeds, or on the other folds of the data. They are pure, and take
the place of a `Search` after its end."""

from collections.abc import Mapping, Sequence

from medray.config.study import StudyConfig
from medray.config.trial import TrialConfig
from medray.evaluation.leaderboard import Entry
from medray.records import TrialRecord
from medray.study.search import Proposal


def proposals(
    study: StudyConfig, finalists: Sequence[Entry], records: Mapping[str, TrialRecord]
) -> list[Proposal]:
    """Return the trials that repeat each finalist. Its own trial is the first seed or fold."""
    split, repeats = study.data.split, []
    for entry in finalists:
        trial = records[entry.name]
        for number in range(1, split.folds if split.is_pooled else study.search.num_seeds):
            seed, fold = (0, number) if split.is_pooled else (number, 0)
            repeats.append(
                Proposal(
                    trial.base, trial.number, trial.settings, of=trial.trial, seed=seed, fold=fold
                )
            )
    return repeats


def config_of(study: StudyConfig, record: TrialRecord) -> TrialConfig:
    """Return a trial's configuration: the base model's settings with the sampled ones, its seed
    and its fold."""
    config = study.trial(study.base_models[record.base], record.settings)
    if study.data.split.is_pooled:
        split = config.data.split.model_copy(update={"fold": record.fold})
        config = config.model_copy(update={"data": config.data.model_copy(update={"split": split})})
    return config.model_copy(update={"seed": config.seed + record.seed})


class Repeats:
    """Runs a fixed list of trials. A repeat stops after as many epochs as its finalist."""

    def __init__(
        self,
        proposals: Sequence[Proposal],
        limits: Mapping[str, float],
        metric: str,
        *,
        num_before: int = 0,
    ) -> None:
        self.metric, self.limits = metric, limits  # epochs of finalists that the search stopped
        self.num_before = num_before  # trials of the search, which a watcher has counted
        self.spent_s = 0.0
        self._left = list(proposals)
        self._proposals = {proposal.name: proposal for proposal in proposals}
        self._of: dict[str, str] = {}

    @property
    def num_trials(self) -> int:
        return self.num_before + len(self._proposals)

    @property
    def seconds(self) -> float:
        """Repeats do not use the time budget."""
        return self.spent_s

    def owns(self, record: TrialRecord) -> bool:
        return record.of is not None and record.trial in self._proposals

    def start(self) -> None:
        pass

    def early_rungs(self, base: int) -> tuple[float, ...]:
        return ()

    def next(self) -> Proposal | None:
        return self._left.pop(0) if self._left else None

    def recall(self, proposal: Proposal) -> None:
        self._left = [left for left in self._left if left.name != proposal.name]

    def begin(self, trial: str, proposal: Proposal) -> None:
        assert proposal.of is not None
        self._of[trial] = proposal.of

    def observe(self, trial: str, epochs: float, metrics: Mapping[str, float]) -> bool:
        return epochs < self.limits.get(self._of[trial], float("inf"))

    def complete(self, trial: str, settings: dict[str, object], *, is_failure: bool) -> None:
        pass
