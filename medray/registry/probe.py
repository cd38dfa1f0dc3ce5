"""The probe of a checkpoint: outputs for texts of the project's own, which every reload repeats."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from medray.errors import ArtifactError
from medray.storage.checkpoint import Probe
from medray.tasks.base.protocol import Task
from medray.types import Engine, Example

PROBE_TEXTS = (
    (
        "Synthetic probe one: histology of the resected specimen showed an infiltrating carcinoma "
        "with nodal metastasis."
    ),
    (
        "Synthetic probe two: blood pressure fell after twelve weeks of treatment in a randomised "
        "crossover trial."
    ),
    "Synthetic probe three: a short note.",
)
TOLERANCE = 1e-3  # between machines in fp32; another adapter, head or base differs far more
ROUNDING = 0.1  # of weights in 16 bits


def probe_outputs(task: Task, engine: Engine) -> npt.NDArray[np.float64]:
    """Return one row of outputs per probe text. A reload of the same model gives the same."""
    return task.probe(
        engine,
        [Example(id=f"probe-{number}", text=text) for number, text in enumerate(PROBE_TEXTS)],
    )


def make_probe(task: Task, engine: Engine) -> Probe:
    return Probe(
        texts=PROBE_TEXTS, outputs=tuple(tuple(row) for row in probe_outputs(task, engine).tolist())
    )


def check_probe(
    folder: Path, probe: Probe, outputs: npt.NDArray[np.float64], tolerance: float = TOLERANCE
) -> None:
    if probe.texts != PROBE_TEXTS:
        raise ArtifactError(
            f"{folder}: its probe uses other texts than this medray; publish the checkpoint again"
        )
    expectation = np.array(probe.outputs)
    if expectation.shape != outputs.shape or not np.allclose(
        expectation, outputs, atol=tolerance, rtol=tolerance
    ):
        raise ArtifactError(
            f"{folder}: its probe gives {outputs.round(4).tolist()} instead of "
            f"{expectation.round(4).tolist()}; publish the checkpoint again"
        )
