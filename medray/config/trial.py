"""Settings of one trial: TrialConfig and its sections: data, model, adapter, training, resources.

A default lives in its field and nowhere else."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from medray import plugins
from medray.config.familiar import FAMILIAR
from medray.config.schema import Plugin, PluginOptions, Section

Precision = Literal["fp32", "bf16", "fp16"]  # arithmetic of a model
PrecisionChoice = Literal["auto", Precision]
_PEAK_RATE = 5e-4


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
    seed: int = Field(0, description="seed of the split")
    group: str | None = Field(
        None, description="metadata column whose equal values stay on one side (kind: grouped)"
    )
    folds: int = Field(5, ge=2, description="number of folds (kind: kfold)")
    fold: int | None = Field(
        None,
        ge=0,
        description=(
            "kfold: the fold that is the test split; by default each fold is in turn, and their "
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
        """Return whether every row is a test row once."""
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
            "at most this many validation rows and as many test rows are evaluated, with labels in "
            "proportion; generated answers take seconds each"
        ),
    )
    corrections: str | None = Field(
        None,
        description=(
            "file of ids and labels (CSV or JSON lines) that replace those of the data; `medray "
            "review --output` writes one"
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


class ModelOptions(Section):
    precision: PrecisionChoice = Field(
        "auto",
        description=(
            "arithmetic; auto times fp32 against bf16 on a real micro-batch; on a GPU it is bf16, "
            "or fp16 below compute capability 8.0"
        ),
    )
    quantization: Literal["none", "nf4"] = Field(
        "none", description="nf4: the base's layers in 4 bits, heads unchanged (QLoRA)"
    )
    double_quantization: bool = Field(
        True, description="with nf4: its scales in 8 bits, 0.4 bits less per weight"
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


class LoraConfig(Section):
    r: int = Field(16, ge=1, description="rank of the adapter's matrices")
    alpha: float = Field(32.0, gt=0, description="scale: the adapter's output times alpha / r")
    dropout: float = Field(0.05, ge=0, lt=1, description="share of the adapter's inputs left out")
    rslora: bool = Field(False, description="scale by alpha / sqrt(r) instead of alpha / r")
    targets: tuple[str, ...] | None = Field(
        None, description="names of linear layers to adapt; by default those of the model's family"
    )
    top_layers: int | None = Field(
        None, ge=1, description="adapt only this many layers, counted from the top"
    )
    dtype: Literal["fp32", "bf16"] = Field("fp32", description="type of the adapter's weights")


class TrainConfig(Section):
    strategy: str = Field(
        "torch",
        description=(
            "how a step is taken: torch (several workers add up their gradients once per step) or "
            "deepspeed (each worker holds a share of the states)"
        ),
    )
    zero_stage: Literal[0, 1, 2, 3] | None = Field(
        None,
        description=(
            "with strategy deepspeed, what is split between workers: 1 the optimizer's states, 2 "
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
    learning_rate: float | None = Field(
        None,
        gt=0,
        description=(
            "peak rate of AdamW; by default search.algorithm auto tries several, and other trials "
            "take 5e-4"
        ),
    )
    head_learning_rate: float | None = Field(
        None, gt=0, description="peak rate of the head; by default that of the adapter"
    )
    weight_decay: float = Field(0.01, ge=0, description="decay of the weights per step, by AdamW")
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    warmup_steps: int | None = Field(None, ge=0, description="steps in which the rate rises")
    warmup_ratio: float | None = Field(
        None, ge=0, lt=1, description="share of all steps in which the rate rises"
    )
    max_grad_norm: float | None = Field(
        1.0, gt=0, description="norm to which gradients are clipped"
    )
    patience: int | None = Field(
        None, ge=1, description="stop after this many evaluations without a better metric"
    )
    evaluate_every_steps: int | None = Field(
        None, ge=1, description="steps between evaluations; by default once per epoch"
    )
    log_every_steps: int = Field(10, ge=1, description="steps between two lines of the log")
    state_every_steps: int | None = Field(
        None,
        ge=1,
        description=(
            "steps between stored states for a resume, besides those at every evaluation, Ctrl-C "
            "and SIGTERM"
        ),
    )
    keep_checkpoints: int = Field(
        1, ge=1, description="number of latest checkpoints to keep, besides the best"
    )

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

    @property
    def peak_rate(self) -> float:
        return self.learning_rate or _PEAK_RATE


class ResourcesConfig(Section):
    """The hardware of one trial."""

    launcher: Literal["auto", "inline", "train"] = Field(
        "auto",
        description=(
            "train: workers of Ray Train; inline: the trial's own process, for one worker; auto: "
            "inline if possible"
        ),
    )
    num_workers: int | tuple[int, int] = Field(
        1,
        description=(
            "workers of a trial; [least, most]: as many as are free, more or fewer while it "
            "trains, with the same results"
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
        description="CPUs and threads per worker; by default chosen for the cluster",
    )
    gpus_per_worker: float | None = Field(
        None,
        ge=0,
        description=(
            "GPUs per worker; by default 1 if the cluster has a GPU, or an equal part of one that "
            "trials of a small base model share; 0 without GPUs"
        ),
    )
    max_failures: int = Field(
        2,
        ge=0,
        description="how often a trial whose process died continues from its last stored state",
    )
    grace_s: float = Field(
        30.0,
        ge=0,
        description=(
            "seconds for a trial to end its step and store its state after Ctrl-C or SIGTERM"
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
        gpus = self.gpus_per_worker or 0
        if gpus > 1:
            raise ValueError(
                f"gpus_per_worker {gpus:g}: a worker computes on one GPU; set at most 1, and "
                "num_workers for more"
            )
        if 0 < gpus < 1 and self.most_workers > 1:
            raise ValueError(
                f"gpus_per_worker {gpus:g} and num_workers {self.num_workers}: workers of one "
                "trial cannot share a GPU; set gpus_per_worker: 1, or num_workers: 1"
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
