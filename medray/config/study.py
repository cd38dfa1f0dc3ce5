"""What a user may ask for: StudyConfig, the TrialConfig it resolves to, and their sections.

A default lives in its field and nowhere else; precedence is field < YAML files, left to right <
`key=value`."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from medray import plugins
from medray.config.familiar import FAMILIAR
from medray.config.files import put_all
from medray.config.schema import Plugin, PluginOptions, Section, validate
from medray.config.search import Axis, SearchConfig, check_optuna
from medray.errors import ConfigError


class SplitConfig(Section):
    """Which rows train, which choose (validation) and which judge (test)."""

    kind: Literal["given", "stratified", "grouped", "kfold"] = "stratified"
    validation: float = Field(
        0.2,
        gt=0,
        lt=1,
        description="share of the rows; with kfold, of the rows outside the test fold",
    )
    test: float = Field(0.2, gt=0, lt=1, description="share of the rows; with kfold, one fold")
    seed: int = Field(0, description="another seed gives other sides")
    group: str | None = Field(
        None, description="metadata column whose equal values stay on one side (kind: grouped)"
    )
    folds: int = Field(5, ge=2, description="number of folds (kind: kfold)")
    fold: int | None = Field(
        None,
        ge=0,
        description=(
            "kfold: the fold that is the test split; where not given each is in turn, and their "
            "predictions are pooled"
        ),
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.validation + self.test >= 1:
            raise ValueError(
                f"validation {self.validation} and test {self.test} leave no rows for training"
            )
        if (self.kind == "grouped") != (self.group is not None):
            raise ValueError(
                f"kind {self.kind!r} and group {self.group!r}: grouped needs the metadata column "
                "in `group`, other kinds take none"
            )
        if self.kind == "kfold" and self.fold is not None and self.fold >= self.folds:
            raise ValueError(f"fold {self.fold} is not one of 0 to folds - 1 = {self.folds - 1}")
        return self

    @property
    def is_pooled(self) -> bool:
        """Whether every row is a test row once."""
        return self.kind == "kfold" and self.fold is None


class DataConfig(Section):
    format: Annotated[PluginOptions, Plugin("data.formats")]
    split: SplitConfig = SplitConfig()
    limit: int | None = Field(
        None, ge=2, description="at most this many training rows, the same for every base model"
    )
    evaluation_rows: int | None = Field(
        None,
        ge=2,
        description=(
            "at most this many validation rows and as many test rows are answered and judged, "
            "labels in proportion; answers in words take seconds each"
        ),
    )
    corrections: str | None = Field(
        None,
        description=(
            "file of ids and labels (CSV or JSON lines) that replace those of the data; `medray "
            "review --output` makes one"
        ),
    )
    near_duplicate: float = Field(
        0.8,
        gt=0,
        le=1,
        description=(
            "texts whose word 5-grams overlap by this share (Jaccard) count as near duplicates"
        ),
    )


class CalibrationConfig(Section):
    """What is fitted on validation rows after the search, for the release to obey."""

    temperature: bool = Field(
        True,
        description="divide log-probabilities by the number that makes validation rows most likely",
    )
    abstain_precision: float | None = Field(
        None,
        gt=0,
        lt=1,
        description=(
            "mark answers as abstained, so that this share of the others is right; nothing is "
            "marked where not given"
        ),
    )
    abstain_level: float = Field(
        0.8,
        ge=0.5,
        lt=1,
        description="how sure the threshold is to keep to it on rows like those of validation",
    )


class PublishConfig(Section):
    """What the winner is published as."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$", description="name of the release")
    storage_path: str | None = Field(
        None, description="where releases are kept; the study's storage_path where not given"
    )
    allow_worse: bool = Field(
        False,
        description="publish the winner also where validation rows show a baseline to be better",
    )
    alias: str = Field(
        "best",
        pattern=r"^[a-z0-9._-]*[a-z][a-z0-9._-]*$",
        max_length=64,
        description="pointed at the new version",
    )

    @model_validator(mode="before")
    @classmethod
    def _without_int8(cls, raw: Any) -> Any:
        """An earlier medray stored `int8: auto` in every study that publishes; what asked for
        nothing more is read as nothing."""
        if not isinstance(raw, dict) or "int8" not in raw:
            return raw
        if raw["int8"] not in ("auto", "never"):
            raise ValueError(
                f"int8 {raw['int8']!r:.40}: answers in 8 bits are gone, since bf16 was faster; "
                "drop this setting"
            )
        return {key: value for key, value in raw.items() if key != "int8"}


class MlflowConfig(Section):
    """Where a study is logged to, besides its own folder."""

    tracking_uri: str = Field(
        description=(
            "MLflow's server, or sqlite:///FILE; a password by reference: "
            "https://USER:${env:NAME}@HOST"
        )
    )


Precision = Literal["fp32", "bf16", "fp16"]  # arithmetic of a model
PrecisionChoice = Literal["auto", Precision]


class ModelOptions(Section):
    precision: PrecisionChoice = Field(
        "auto", description="arithmetic; auto times fp32 against bf16 on a real micro-batch"
    )
    quantization: Literal["none", "nf4"] = Field(
        "none", description="nf4: the base's layers in 4 bits, heads as they are (QLoRA)"
    )
    double_quantization: bool = Field(
        True, description="with nf4: its scales in 8 bits, 0.4 bits a weight less"
    )
    dropout: float = Field(
        0.0, ge=0, lt=1, description="dropout inside the frozen base; LoRA has its own"
    )
    gradient_checkpointing: bool = Field(False, description="recompute activations to save memory")


class ModelConfig(ModelOptions):
    source: str = Field(
        description=(
            "folder, `pkg:PACKAGE` (weights that an installed Python package ships) or a Hugging "
            "Face Hub id"
        )
    )
    revision: str | None = Field(None, description="Hub revision")


class BaseModelConfig(Section):
    """One base model of a study."""

    source: str = Field(description=str(ModelConfig.model_fields["source"].description))
    revision: str | None = Field(None, description="commit, tag or branch on the Hub")
    overrides: dict[str, Any] = Field(
        {},
        description=(
            "dotted trial settings for this base model alone, such as lora.r: 8; what is set here "
            "is not searched"
        ),
    )
    space: dict[str, Axis] = Field(
        {}, description="axes for this base model alone, instead of the study's or beside them"
    )
    num_trials: int | None = Field(None, ge=1, description="search.num_trials where not given")


class LoraConfig(Section):
    r: int = Field(16, ge=1, description="rank of the adapter's matrices")
    alpha: float = Field(32.0, gt=0, description="scale: the adapter's output times alpha / r")
    dropout: float = Field(0.05, ge=0, lt=1, description="share of the adapter's inputs left out")
    rslora: bool = Field(False, description="scale by alpha / sqrt(r) instead of alpha / r")
    targets: tuple[str, ...] | None = Field(
        None, description="names of linear layers to adapt; the family's own where not given"
    )
    top_layers: int | None = Field(
        None, ge=1, description="adapt only this many layers, counted from the top"
    )
    dtype: Literal["fp32", "bf16"] = Field("fp32", description="type of the adapter's weights")


class TrainConfig(Section):
    strategy: str = Field(
        "torch",
        description=(
            "how a step is taken: torch (several workers add their gradients up once a step) or "
            "deepspeed (they share out states)"
        ),
    )
    zero_stage: Literal[0, 1, 2, 3] | None = Field(
        None,
        description=(
            "with strategy deepspeed, what workers share out: 1 the optimizer's states, 2 "
            "gradients too, 3 weights too, 0 nothing"
        ),
    )
    offload_optimizer: bool = Field(
        False,
        description="with zero_stage 1 to 3: optimizer states in the CPU's memory, updated there",
    )
    epochs: int | None = Field(None, ge=1, description="passes over the training rows")
    max_steps: int | None = Field(None, ge=1, description="steps of a trial, instead of epochs")
    samples_per_step: int = Field(
        16, ge=1, description="rows per optimizer step, over all workers, exactly"
    )
    token_budget: int = Field(
        4096,
        ge=1,
        description="tokens of a micro-batch, padding included; sets memory, not results",
    )
    learning_rate: float = Field(5e-4, gt=0, description="peak rate of AdamW")
    head_learning_rate: float | None = Field(
        None, gt=0, description="learning_rate where not given"
    )
    weight_decay: float = Field(0.01, ge=0, description="decay of the weights per step, by AdamW")
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    warmup_steps: int | None = Field(None, ge=0, description="steps in which the rate rises")
    warmup_ratio: float | None = Field(None, ge=0, lt=1, description="its share of all steps")
    max_grad_norm: float | None = Field(1.0, gt=0, description="gradients are clipped to it")
    patience: int | None = Field(
        None, ge=1, description="stop after this many evaluations without a better metric"
    )
    evaluate_every_steps: int | None = Field(
        None, ge=1, description="evaluate this often instead of once an epoch"
    )
    log_every_steps: int = Field(10, ge=1, description="steps between two lines of the log")
    state_every_steps: int | None = Field(
        None,
        ge=1,
        description=(
            "store the state for a resume this often, besides at every evaluation, Ctrl-C and "
            "SIGTERM"
        ),
    )
    keep_checkpoints: int = Field(1, ge=1, description="latest checkpoints kept, besides the best")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.epochs is None) == (self.max_steps is None):
            raise ValueError(
                f"epochs {self.epochs} and max_steps {self.max_steps}: give exactly one of the two"
            )
        if self.warmup_steps is not None and self.warmup_ratio is not None:
            raise ValueError(
                f"warmup_steps {self.warmup_steps} and warmup_ratio {self.warmup_ratio}: give one "
                "of the two"
            )
        if self.strategy == "ddp":
            raise ValueError(
                "strategy ddp: strategy torch is that, where resources.num_workers is more than 1"
            )
        plugins.find("training.strategies", self.strategy)
        return self


class ResourcesConfig(Section):
    """What one trial computes on."""

    launcher: Literal["auto", "inline", "train"] = Field(
        "auto",
        description=(
            "train: workers of Ray Train; inline: the trial's own process, for one worker; auto: "
            "inline where that can be"
        ),
    )
    num_workers: int | tuple[int, int] = Field(
        1,
        description=(
            "of a trial; [least, most]: as many as are free, more or fewer while it trains, with "
            "the same results"
        ),
    )
    placement: Literal["pack", "spread"] = Field(
        "pack",
        description=(
            "a trial's workers on as few nodes as hold them (pack), or on as many as there are "
            "(spread)"
        ),
    )
    cpus_per_worker: int | None = Field(
        None,
        ge=1,
        description="CPUs and threads of a worker; chosen for the cluster where not given",
    )
    gpus_per_worker: float | None = Field(
        None, ge=0, description="1 where the cluster has a GPU, else 0, if not given"
    )
    max_failures: int = Field(
        2,
        ge=0,
        description="how often a trial whose process died goes on from its last stored state",
    )
    grace_s: float = Field(
        30.0,
        ge=0,
        description=(
            "seconds that Ctrl-C and SIGTERM leave a trial to end its step and store its state"
        ),
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not 1 <= self.least_workers <= self.most_workers:
            raise ValueError(
                f"num_workers {self.num_workers}: at least 1, and of two numbers the smaller one "
                "first"
            )
        if self.launcher == "inline" and self.most_workers > 1:
            raise ValueError(
                f"launcher inline and num_workers {self.num_workers}: several workers need "
                "launcher train"
            )
        return self

    @property
    def least_workers(self) -> int:
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[0]

    @property
    def most_workers(self) -> int:
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[1]


class TrialConfig(Section):
    """One configuration of one base model: everything a trial needs, and what its manifest
    keeps."""

    FAMILIAR = FAMILIAR
    seed: int = 0
    data: DataConfig
    task: Annotated[PluginOptions, Plugin("tasks")]
    model: ModelConfig
    lora: LoraConfig = LoraConfig()
    train: TrainConfig
    resources: ResourcesConfig = ResourcesConfig()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if wrong := plugins.find("training.strategies", self.train.strategy).check(self):
            raise ValueError("; ".join(wrong))
        if self.train.samples_per_step < self.resources.most_workers:
            raise ValueError(
                f"train.samples_per_step {self.train.samples_per_step} and resources.num_workers "
                f"{self.resources.num_workers}: "
                "each worker needs a row in every step"
            )
        return self


class StudyConfig(Section):
    """Many trials over several base models; the sections but `base_models` are every trial's
    defaults."""

    FAMILIAR = FAMILIAR
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$", description="name of the study")
    storage_path: str = Field("runs", description="folder that the study's own folder is made in")
    seed: int = Field(0, description="sets adapters, row order, dropout and draws of the search")
    data: DataConfig
    task: Annotated[PluginOptions, Plugin("tasks")]
    base_models: tuple[BaseModelConfig, ...] = Field(min_length=1)
    model: ModelOptions = ModelOptions()
    lora: LoraConfig = LoraConfig()
    train: TrainConfig
    resources: ResourcesConfig = ResourcesConfig()
    search: SearchConfig = SearchConfig()
    calibration: CalibrationConfig = CalibrationConfig()
    publish: PublishConfig | None = Field(None, description="publish the winner, where given")
    mlflow: MlflowConfig | None = Field(
        None, description="log the study to MLflow; where not given, MLFLOW_TRACKING_URI says where"
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
            if base.num_trials not in (None, 1) and not self.space(base):
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
        if self.search.num_trials not in (None, 1) and not any(map(self.space, self.base_models)):
            raise ValueError(
                f"search.num_trials {self.search.num_trials} and no search.space: the trials "
                "would be equal"
            )
        if self.data.split.is_pooled and self.search.num_seeds > 1:
            raise ValueError(
                f"data.split.kind kfold without fold and search.num_seeds {self.search.num_seeds}: "
                "finalists are repeated over folds or over seeds;"
                " give data.split.fold, or num_seeds 1"
            )
        return self

    def space(self, base: BaseModelConfig) -> dict[str, Axis]:
        """The axes of one base model: the study's and its own, without what its overrides set."""
        return {
            path: axis
            for path, axis in {**self.search.space, **base.space}.items()
            if path not in base.overrides
        }

    def trial(self, base: BaseModelConfig, sampled: Mapping[str, Any] | None = None) -> TrialConfig:
        """The trial of one base model: the study's sections, the base's overrides, then what a
        search sampled."""
        raw = self.model_dump(mode="json", include=set(TrialConfig.model_fields))
        raw["model"] |= {"source": base.source, "revision": base.revision}
        for layer in (base.overrides, sampled or {}):
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
        fixed = [
            name
            for name in self.task.STUDY_WIDE
            if getattr(trial.task, name, None) != getattr(self.task, name)
        ]
        if fixed:
            names = ", ".join(f"task.{name}" for name in fixed)
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
