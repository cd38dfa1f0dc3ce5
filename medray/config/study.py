"""Settings of a study: StudyConfig, its base models, and what is published.

A default lives in its field and nowhere else. Precedence is field < YAML files, left to right <
`key=value`."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from medray.config.familiar import FAMILIAR
from medray.config.files import put_all
from medray.config.reference import ReferenceConfig
from medray.config.schema import Plugin, PluginOptions, Section, validate
from medray.config.search import Axis, SearchConfig, check_optuna
from medray.config.trial import (
    DataConfig,
    LoraConfig,
    ModelConfig,
    ModelOptions,
    ResourcesConfig,
    TrainConfig,
    TrialConfig,
)
from medray.errors import ConfigError

LEARNING_RATE = "train.learning_rate"
_NUM_RATES = 6


class CalibrationConfig(Section):
    """Calibration of the release, fitted on validation rows after the search."""

    temperature: bool = Field(
        True,
        description="divide log-probabilities by the number that makes validation rows most likely",
    )
    abstain_precision: float | None = Field(
        None,
        gt=0,
        lt=1,
        description=(
            "mark answers as abstained, so that this share of the others is right; by default no "
            "answer is marked"
        ),
    )
    abstain_level: float = Field(
        0.8,
        ge=0.5,
        lt=1,
        description=(
            "probability that the threshold keeps this precision on rows like those of validation"
        ),
    )


class PublishConfig(Section):
    """The release that the winner becomes."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$", description="name of the release")
    storage_path: str | None = Field(
        None, description="folder of the releases; by default the study's storage_path"
    )
    allow_worse: bool = Field(
        False,
        description="publish the winner even if a baseline is better on validation rows",
    )
    alias: str = Field(
        "best",
        pattern=r"^[a-z0-9._-]*[a-z][a-z0-9._-]*$",
        max_length=64,
        description="alias that points to the new version",
    )

    @model_validator(mode="before")
    @classmethod
    def _without_int8(cls, raw: Any) -> Any:
        """Drop `int8: auto`, which an earlier medray stored in every study that publishes."""
        if not isinstance(raw, dict) or "int8" not in raw:
            return raw
        if raw["int8"] not in ("auto", "never"):
            raise ValueError(
                f"int8 {raw['int8']!r:.40}: answers in 8 bits are gone, since bf16 was faster; "
                "drop this setting"
            )
        return {key: value for key, value in raw.items() if key != "int8"}


class MlflowConfig(Section):
    """The MLflow server that also gets the figures of a study."""

    tracking_uri: str = Field(
        description=(
            "MLflow's server, or sqlite:///FILE; a password by reference: "
            "https://USER:${env:NAME}@HOST"
        )
    )


class BaseModelConfig(Section):
    """One base model of a study."""

    source: str = Field(description=str(ModelConfig.model_fields["source"].description))
    revision: str | None = Field(None, description="commit, tag or branch on the Hub")
    overrides: dict[str, Any] = Field(
        {},
        description=(
            "dotted trial settings for this base model alone, such as lora.r: 8; they are not "
            "searched"
        ),
    )
    space: dict[str, Axis] = Field(
        {}, description="axes for this base model alone, which replace or join the study's"
    )
    num_trials: int | None = Field(
        None, ge=1, description="trials of this base model; by default search.num_trials"
    )


class StudyConfig(Section):
    """Many trials over several base models; the sections but `base_models` are every trial's
    defaults."""

    FAMILIAR = FAMILIAR
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$", description="name of the study")
    storage_path: str = Field("runs", description="folder that contains the study's own folder")
    seed: int = Field(0, description="seed of adapters, row order, dropout and draws of the search")
    data: DataConfig
    task: Annotated[PluginOptions, Plugin("tasks")]
    base_models: tuple[BaseModelConfig, ...] = Field(min_length=1)
    references: tuple[ReferenceConfig, ...] = Field(
        (), description="services that answer typed questions, asked about the same rows"
    )
    model: ModelOptions = ModelOptions()
    lora: LoraConfig = LoraConfig()
    train: TrainConfig
    resources: ResourcesConfig = ResourcesConfig()
    search: SearchConfig = SearchConfig()
    calibration: CalibrationConfig = CalibrationConfig()
    publish: PublishConfig | None = Field(None, description="publish the winner, if set")
    mlflow: MlflowConfig | None = Field(
        None, description="log the study to MLflow; by default to MLFLOW_TRACKING_URI, if it is set"
    )

    @model_validator(mode="after")
    def _searchable(self) -> Self:
        for base in self.base_models:
            both = sorted(base.space.keys() & base.overrides.keys())
            if both:
                raise ValueError(
                    f"base model {base.source}: {', '.join(both)} in both space and overrides: "
                    "searched or set, not both"
                )
            if base.num_trials is not None and self.search.algorithm == "grid":
                raise ValueError(
                    f"base model {base.source}: num_trials and search.algorithm grid: a grid has "
                    "as many trials as points"
                )
            if base.num_trials not in (None, 1) and not self.has_search(base):
                raise ValueError(
                    f"base model {base.source}: num_trials {base.num_trials} and nothing to "
                    "search: its trials would be equal"
                )
            if self.search.algorithm == "optuna":
                check_optuna(base.space)
            if self.search.algorithm == "grid" and (
                endless := [path for path, axis in base.space.items() if not axis.is_finite]
            ):
                raise ValueError(
                    f"base model {base.source}: space {', '.join(endless)} and search.algorithm "
                    "grid: choice and grid axes only"
                )
        if self.search.num_trials not in (None, 1) and not any(
            map(self.has_search, self.base_models)
        ):
            raise ValueError(
                f"search.num_trials {self.search.num_trials} and no search.space: the trials "
                "would be equal; leave train.learning_rate to search.algorithm auto"
            )
        if len({reference.name for reference in self.references}) < len(self.references):
            raise ValueError("references: two have the same url and model; remove one")
        if self.data.split.is_pooled and self.search.num_seeds > 1:
            raise ValueError(
                f"data.split.kind kfold without fold and search.num_seeds {self.search.num_seeds}: "
                "finalists are repeated over folds or over seeds;"
                " give data.split.fold, or num_seeds 1"
            )
        return self

    def space(self, base: BaseModelConfig) -> dict[str, Axis]:
        """Return the axes of one base model: the study's and its own, without its overrides."""
        return {
            path: axis
            for path, axis in {**self.search.space, **base.space}.items()
            if path not in base.overrides
        }

    def tries_rates(self, base: BaseModelConfig) -> bool:
        """Return whether algorithm auto tries learning rates for a base model. What is set is not
        searched."""
        return (
            self.search.algorithm == "auto"
            and not self.space(base)
            and base.overrides.get(LEARNING_RATE, self.train.learning_rate) is None
        )

    def has_search(self, base: BaseModelConfig) -> bool:
        return bool(self.space(base)) or self.tries_rates(base)

    def uses_asha(self, base: BaseModelConfig) -> bool:
        scheduler = self.search.scheduler
        return scheduler == "asha" or (scheduler == "auto" and self.tries_rates(base))

    def num_draws(self, base: BaseModelConfig) -> int:
        """Return the number of draws for a base model, each of which is a trial or more."""
        default = _NUM_RATES if self.tries_rates(base) else 1
        return base.num_trials or self.search.num_trials or default

    def trial(self, base: BaseModelConfig, sample: Mapping[str, Any] | None = None) -> TrialConfig:
        """Return the trial of one base model: the study's sections, the base's overrides, then a
        sample of the search."""
        raw = self.model_dump(mode="json", include=set(TrialConfig.model_fields))
        raw["model"] |= {"source": base.source, "revision": base.revision}
        for layer in (base.overrides, sample or {}):
            put_all(
                raw,
                [
                    (key, deepcopy(value), f"base model {base.source}")
                    for key, value in layer.items()
                ],
            )
        trial = validate(TrialConfig, raw, where=f"study {self.name}, base model {base.source}")
        if trial.data.model_copy(update={"limit": None}) != self.data.model_copy(
            update={"limit": None}
        ):
            raise ConfigError(
                f"study {self.name}, base model {base.source}: of data only data.limit can "
                "differ: base models of one study are compared on the same rows"
            )
        overrides = [
            name
            for name in self.task.STUDY_WIDE
            if getattr(trial.task, name, None) != getattr(self.task, name)
        ]
        if overrides:
            names = ", ".join(f"task.{name}" for name in overrides)
            raise ConfigError(
                f"study {self.name}, base model {base.source}: {names} cannot be overridden: "
                "trials are ranked by one figure"
            )
        if (trial.model.source, trial.model.revision) != (base.source, base.revision):
            raise ConfigError(
                f"study {self.name}, base model {base.source}: model.source and model.revision "
                "are the base model's: list another one"
            )
        return trial
