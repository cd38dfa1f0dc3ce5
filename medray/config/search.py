"""The search of a study: its axes, how they are drawn, and when a trial stops."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

from pydantic import ConfigDict, Field, model_serializer, model_validator

from medray.config.schema import Section

KINDS = ("choice", "grid", "uniform", "loguniform", "qloguniform", "randint")


class Axis(Section):
    """Exactly one of its fields is set, such as `loguniform: [1.0e-4, 3.0e-3]`."""

    choice: tuple[Any, ...] | None = Field(
        None, min_length=1, description="one of these values, drawn"
    )
    grid: tuple[Any, ...] | None = Field(
        None, min_length=1, description="each of these, crossed with the other grid axes"
    )
    uniform: tuple[float, float] | None = Field(None, description="[low, high]")
    loguniform: tuple[float, float] | None = Field(None, description="[low, high], both above 0")
    qloguniform: tuple[float, float, float] | None = Field(
        None, description="[low, high, step]: loguniform, rounded to whole steps"
    )
    randint: tuple[int, int] | None = Field(None, description="[low, high], both included")

    @model_validator(mode="before")
    @classmethod
    def _is_no_list(cls, value: Any) -> Any:
        if isinstance(value, list | tuple):
            raise ValueError(f"is a list; write {{grid: {list(value)!r:.80}}}, or another kind")
        return value

    @model_validator(mode="after")
    def _one(self) -> Self:
        names = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(names) != 1:
            raise ValueError(
                f"needs exactly one of {', '.join(KINDS)}; found {', '.join(names) or 'none'}"
            )
        if self.is_finite:
            return self
        low, high, *step = self.values
        if not low < high:
            raise ValueError(f"{self.kind}: low {low} must be less than high {high}")
        if self.kind in ("loguniform", "qloguniform") and low <= 0:
            raise ValueError(f"{self.kind}: low {low} must be above 0")
        if step and not 0 < step[0] <= high - low:
            raise ValueError(
                f"{self.kind}: step {step[0]} must be above 0 and at most high - low = {high - low}"
            )
        return self

    @model_serializer
    def _as_axis(self) -> dict[str, list[Any]]:
        return {self.kind: list(self.values)}

    @property
    def kind(self) -> str:
        return next(kind for kind in KINDS if getattr(self, kind) is not None)

    @property
    def values(self) -> tuple[Any, ...]:
        values: tuple[Any, ...] = getattr(self, self.kind)
        return values

    @property
    def is_finite(self) -> bool:
        return self.kind in ("choice", "grid")

    @property
    def extremes(self) -> Sequence[Any]:
        """Values that show the mistakes of an axis before anything is drawn from it."""
        if self.is_finite:
            return self.values
        low, high = self.values[:2]
        # Not a whole number, which a setting may require.
        has_fractions = self.kind not in ("randint", "qloguniform")
        between = [low + (high - low) / math.pi] if has_fractions else []
        return [low, *between, high]


class TieConfig(Section):
    parameters: float = Field(
        1.5,
        ge=1,
        description="a tied model wins where it has so many times fewer parameters than the best",
    )


class SearchConfig(Section):
    """Which trials a study runs, and which of them it stops early."""

    # `from` is a word of Python.
    model_config = ConfigDict(serialize_by_alias=True)
    algorithm: Literal["auto", "random", "grid", "optuna"] = Field(
        "auto",
        description=(
            "how settings are drawn: auto tries learning rates around the best guess for the base "
            "model, or is random where there is a space; optuna is TPE"
        ),
    )
    space: dict[str, Axis] = Field(
        {}, description="dotted trial settings and the values they may take"
    )
    num_trials: int | None = Field(
        None,
        ge=1,
        description=(
            "trials of each base model; by default 6 learning rates, or 1 draw from a space; a "
            "grid runs each of its points"
        ),
    )
    from_run: str | None = Field(
        None,
        alias="from",
        description=(
            "run of an earlier study of the same task; the best settings of each base model there "
            "are the first guess here"
        ),
    )
    num_epochs: float | None = Field(
        None, gt=0, description="stop when the trials have trained this many epochs together"
    )
    time_s: float | None = Field(
        None,
        gt=0,
        description=(
            "stop after this many seconds of search, those before a resume included, at a trial's "
            "next evaluation"
        ),
    )
    scheduler: Literal["auto", "none", "asha"] = Field(
        "auto",
        description=(
            "asha stops a trial that is not among the best at its rung, by validation loss where "
            "the task has one; auto is asha for learning rates of algorithm auto, and else none"
        ),
    )
    grace_epochs: float | None = Field(
        None,
        gt=0,
        description=(
            "asha: the first rung; by default the first epoch after 50 steps and the warm-up, or "
            "for many rows a third, a ninth or a 27th of an epoch"
        ),
    )
    reduction_factor: float = Field(
        3, gt=1, description="asha: factor between rungs; one of so many trials continues at each"
    )
    num_finalists: int = Field(
        1, ge=1, description="best trials of each base model that are evaluated on test rows"
    )
    tie: Literal["best"] | TieConfig = Field(
        TieConfig(),
        description=(
            "which finalist wins if validation rows cannot separate them; best: the one with the "
            "best figure"
        ),
    )
    num_seeds: int = Field(
        1,
        ge=1,
        description="seeds that each finalist is trained with; its figures are the means over them",
    )
    max_failed: int | None = Field(
        None,
        ge=0,
        description=(
            "trials that may fail, by default half of them; with one more, no further trial starts "
            "and nothing is evaluated"
        ),
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.algorithm == "grid":
            endless = [path for path, axis in self.space.items() if not axis.is_finite]
            if endless:
                raise ValueError(
                    f"algorithm grid and space {', '.join(endless)}: a grid takes choice and grid "
                    "axes only"
                )
            if self.num_trials is not None:
                raise ValueError(
                    f"algorithm grid and num_trials {self.num_trials}: a grid has as many trials "
                    "as points"
                )
        if self.algorithm == "optuna":
            check_optuna(self.space)
        if self.algorithm == "grid" and self.from_run is not None:
            raise ValueError(
                "algorithm grid and from: a grid runs every point; leave one of them out"
            )
        names = [] if self.grace_epochs in (None, 1) else ["grace_epochs"]  # 1: an earlier default
        if self.reduction_factor != SearchConfig.model_fields["reduction_factor"].default:
            names.append("reduction_factor")
        if names and self.scheduler != "asha" and (self.scheduler == "none" or self.space):
            raise ValueError(
                f"scheduler {self.scheduler} and {', '.join(names)}: only asha has rungs; set "
                "scheduler to asha"
            )
        return self


def check_optuna(space: Mapping[str, Axis]) -> None:
    for path, axis in space.items():
        if axis.kind in ("qloguniform", "grid"):
            raise ValueError(
                f"algorithm optuna and space {path}: Optuna has no {axis.kind}; allowed: choice, "
                "uniform, loguniform, randint"
            )
