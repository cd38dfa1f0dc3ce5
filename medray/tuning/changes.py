"""What a study that goes on may ask otherwise than the run that it goes on with. Pure."""

from collections.abc import Iterator
from typing import Any

from medray.addresses import comparable
from medray.config import StudyConfig
from medray.errors import ConfigError

# None of these changes what a trial that was run has computed.
CHANGEABLE = (
    "search.num_trials",
    "search.num_epochs",
    "search.time_s",
    "search.max_failed",
    "search.num_finalists",
    "search.num_seeds",
    "search.tie",
    "search.tie.parameters",
)
_CHANGEABLE_SECTIONS = ("publish", "resources")
_CHANGEABLE_MEMORY = ("train.token_budget", "train.keep_checkpoints")
_SHOWN = 6


def check(kept: StudyConfig, asked: StudyConfig, where: str) -> None:
    """Refuse what would mix two configurations in one ranking, each by its name."""
    before, after = (dict(leaves(study.model_dump(mode="json"))) for study in (kept, asked))
    names = [name for name in {**before, **after} if not _is_same(before.get(name), after.get(name))]
    refused = [name for name in names if not _may_change(name, len(kept.base_models))]
    if not refused:
        return
    listed = "; ".join(f"{name} was {before.get(name, 'not set')!r} and is {after.get(name, 'not set')!r}" for name in refused[:_SHOWN])
    more = f" and {len(refused) - _SHOWN} more" if len(refused) > _SHOWN else ""
    allowed = ", ".join([*CHANGEABLE, *_CHANGEABLE_SECTIONS, *_CHANGEABLE_MEMORY])
    raise ConfigError(
        f"{where}: was started with other settings: {listed}{more}; a study that goes on may change {allowed} and num_trials"
        " of a base model, and append base models; for anything else start anew, without --resume"
    )


def asks_for_more(kept: StudyConfig, asked: StudyConfig) -> bool:
    """Whether a study that has ended has something left to train or to judge."""

    def wanted(study: StudyConfig) -> list[int]:
        return [base.num_trials or study.search.num_trials or 1 for base in study.base_models]

    def budget(value: float | None) -> float:
        return float("inf") if value is None else value

    before, after = kept.search, asked.search
    return (
        len(asked.base_models) > len(kept.base_models)
        or any(new > old for old, new in zip(wanted(kept), wanted(asked), strict=False))
        or budget(after.num_epochs) > budget(before.num_epochs)
        or budget(after.time_s) > budget(before.time_s)
        or after.num_finalists > before.num_finalists
        or after.num_seeds > before.num_seeds
        or after.tie != before.tie
    )


def _is_same(before: Any, after: Any) -> bool:
    """Also an address that was signed again, or whose secret is given or named otherwise: its place is the same."""
    return before == after or (isinstance(before, str) and isinstance(after, str) and comparable(before) == comparable(after))


def _may_change(name: str, num_bases: int) -> bool:
    section, _, rest = name.partition(".")
    if section == "base_models":
        place, _, setting = rest.partition(".")
        return int(place) >= num_bases or setting == "num_trials"
    return section in _CHANGEABLE_SECTIONS or name in CHANGEABLE or name in _CHANGEABLE_MEMORY


def leaves(raw: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting under its dotted name; lists of plain values are one setting."""
    if isinstance(raw, dict) and raw:
        for key, value in raw.items():
            yield from leaves(value, f"{name}.{key}" if name else str(key))
    elif name == "base_models":
        for place, base in enumerate(raw):
            yield from leaves(base, f"{name}.{place}")
    else:
        yield name, raw
