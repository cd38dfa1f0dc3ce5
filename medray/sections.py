"""Sections of a study's settings about its rows, and about what its winner becomes."""

from typing import Annotated, Literal, Self, get_args

from pydantic import Field, model_validator

from medray.schema import Plugin, PluginOptions, Section


class SplitConfig(Section):
    """Which rows train, which choose (validation) and which judge (test)."""

    kind: Literal["given", "stratified", "grouped", "kfold"] = "stratified"
    validation: float = Field(0.2, gt=0, lt=1, description="share of the rows; with kfold, of the rows outside the test fold")
    test: float = Field(0.2, gt=0, lt=1, description="share of the rows; with kfold, one fold")
    seed: int = 0
    group: str | None = Field(None, description="metadata column whose equal values stay on one side (kind: grouped)")
    folds: int = Field(5, ge=2)
    fold: int | None = Field(
        None, ge=0, description="kfold: the fold that is the test split; where not given each is in turn, and their predictions are pooled"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.validation + self.test >= 1:
            raise ValueError(f"validation {self.validation} and test {self.test} leave no rows for training")
        if (self.kind == "grouped") != (self.group is not None):
            raise ValueError(
                f"kind {self.kind!r} and group {self.group!r}: grouped needs the metadata column in `group`, other kinds take none"
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
    limit: int | None = Field(None, ge=2, description="at most this many training rows, the same for every base model")
    evaluation_rows: int | None = Field(
        None,
        ge=2,
        description="at most this many validation rows and as many test rows are answered and judged, labels in proportion; answers in words take seconds each",
    )
    corrections: str | None = Field(
        None, description="file of ids and labels (CSV or JSON lines) that replace those of the data; `medray review --export` makes one"
    )
    near_duplicate: float = Field(
        0.8, gt=0, le=1, description="texts whose word 5-grams overlap by this share (Jaccard) count as near duplicates"
    )


class CalibrationConfig(Section):
    """What is fitted on validation rows after the search, for the release to obey."""

    temperature: bool = Field(True, description="divide log-probabilities by the number that makes validation rows most likely")
    abstain_precision: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="mark answers as abstained, so that this share of the others is right; nothing is marked where not given",
    )
    abstain_level: float = Field(0.8, ge=0.5, lt=1, description="how sure the threshold is to keep to it on rows like those of validation")


Int8Mode = Literal["auto", "always", "never"]
INT8_MODES: tuple[Int8Mode, ...] = get_args(Int8Mode)


class PublishConfig(Section):
    """What the winner is published as."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")
    storage_path: str | None = Field(None, description="where releases are kept; the study's storage_path where not given")
    allow_worse: bool = Field(False, description="publish the winner also where validation rows show a baseline to be better")
    alias: str = Field("best", pattern=r"^[a-z0-9._-]*[a-z][a-z0-9._-]*$", max_length=64, description="pointed at the new version")
    int8: Int8Mode = Field(
        "auto",
        description="measure on validation rows what 8 bits do to a head's F1, so that it may be served in them; always: however long it takes, and an error where it cannot be",
    )


class MlflowConfig(Section):
    """Where a study is logged to, besides its own folder."""

    tracking_uri: str = Field(description="MLflow's server, or sqlite:///FILE; a password by reference: https://USER:${env:NAME}@HOST")
