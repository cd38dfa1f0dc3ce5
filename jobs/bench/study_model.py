"""The model of a study that a bench measures: its first base model untuned, or a checkpoint."""

import argparse

from medray.config.trial import TrialConfig
from medray.data.dataset import Dataset
from medray.registry.external import fit_base_model_task
from medray.registry.loading import base_model_engine, load
from medray.tasks.base.protocol import Task
from medray.types import Engine


def parser(description: str | None, *, num_rows: int) -> argparse.ArgumentParser:
    """Return a parser of the study, the checkpoint and the number of rows."""
    options = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("study", help="a YAML file")
    options.add_argument("settings", nargs="*", help="key=value")
    options.add_argument("--checkpoint", help="a folder; without it, the base model answers")
    options.add_argument("--rows", type=int, default=num_rows)
    return options


def study_model(
    checkpoint: str | None, config: TrialConfig, dataset: Dataset
) -> tuple[Task, Engine]:
    if checkpoint:
        release = load(checkpoint)
        return release.task, release.engine
    return fit_base_model_task(config, dataset), base_model_engine(config)
