"""Settings that a resumed study may change. Every other change would mix two configurations in one
ranking."""

from collections.abc import Iterator
from typing import Any

from medray.config.addresses import comparable
from medray.config.study import StudyConfig
from medray.errors import ConfigError

# No setting here changes the results of earlier trials.
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
_CHANGEABLE_SECTIONS = ("publish", "references", "resources")
_CHANGEABLE_MEMORY = ("train.token_budget", "train.keep_checkpoints")
_MOST_NAMES = 6  # in the error message


def check_settings(old: StudyConfig, new: StudyConfig, where: str) -> None:
    """Raise a ConfigError that names each changed setting that a resume may not change."""
    before, after = (dict(leaves(_settings(study))) for study in (old, new))
    changes = [
        name for name in {**before, **after} if not _is_same(before.get(name), after.get(name))
    ]
    conflicts = [name for name in changes if not _may_change(name, len(old.base_models))]
    if not conflicts:
        return
    differences = "; ".join(
        f"{name} was {before.get(name, 'not set')!r} and is {after.get(name, 'not set')!r}"
        for name in conflicts[:_MOST_NAMES]
    )
    more = f" and {len(conflicts) - _MOST_NAMES} more" if len(conflicts) > _MOST_NAMES else ""
    changeable = ", ".join([*CHANGEABLE, *_CHANGEABLE_SECTIONS, *_CHANGEABLE_MEMORY])
    raise ConfigError(
        f"{where}: was started with other settings: {differences}{more}; a resume may change "
        f"{changeable} and num_trials"
        " of a base model, and append base models; start a new study without --resume for anything "
        "else"
    )


def _settings(study: StudyConfig) -> dict[str, Any]:
    """Return the settings, with what `auto` stands for where that does not depend on the base
    model. An earlier medray stored it so."""
    raw = study.model_dump(mode="json")
    search, tries_rates = raw["search"], any(map(study.tries_rates, study.base_models))
    if not tries_rates:
        search["algorithm"] = search["algorithm"].replace("auto", "random")
        search["scheduler"] = search["scheduler"].replace("auto", "none")
        raw["train"]["learning_rate"] = study.train.peak_rate
    if search["scheduler"] == "none":
        search["grace_epochs"] = None
    return raw


def wants_more(old: StudyConfig, new: StudyConfig) -> bool:
    """Return whether a finished study has trials left to train or evaluate."""

    def num_trials(study: StudyConfig) -> list[int]:
        return [study.num_draws(base) for base in study.base_models]

    def budget(value: float | None) -> float:
        return float("inf") if value is None else value

    before, after = old.search, new.search
    return (
        len(new.base_models) > len(old.base_models)
        or any(more > less for less, more in zip(num_trials(old), num_trials(new), strict=False))
        or budget(after.num_epochs) > budget(before.num_epochs)
        or budget(after.time_s) > budget(before.time_s)
        or after.num_finalists > before.num_finalists
        or after.num_seeds > before.num_seeds
        or after.tie != before.tie
        or new.references != old.references
    )


def _is_same(before: Any, after: Any) -> bool:
    """Return whether two values are equal, apart from a new signature or another form of a secret
    in a URL."""
    return before == after or (
        isinstance(before, str)
        and isinstance(after, str)
        and comparable(before) == comparable(after)
    )


def _may_change(name: str, num_bases: int) -> bool:
    section, _, rest = name.partition(".")
    if section == "base_models":
        place, _, setting = rest.partition(".")
        return int(place) >= num_bases or setting == "num_trials"
    return section in _CHANGEABLE_SECTIONS or name in CHANGEABLE or name in _CHANGEABLE_MEMORY


def leaves(raw: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each setting with its dotted name. A list of plain values is one setting."""
    if isinstance(raw, dict) and raw:
        for key, value in raw.items():
            yield from leaves(value, f"{name}.{key}" if name else str(key))
    elif name == "base_models":
        for place, base in enumerate(raw):
            yield from leaves(base, f"{name}.{place}")
    else:
        yield name, raw
