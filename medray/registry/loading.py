"""From a checkpoint's folder back to the task and the engine that made its predictions, proven by its probe."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, save_file

from medray.config.study import Precision, TrialConfig
from medray.data.row_hashes import Hashes
from medray.engines.transformers import TransformersEngine
from medray.errors import ArtifactError
from medray.evaluation.novelty import Cloud
from medray.models import sources
from medray.models.build import Built, build, merge
from medray.records import AS_IT_IS, CalibrationRecord
from medray.registry.answers import calibrated
from medray.storage import checkpoint, files
from medray.storage.checkpoint import Manifest, Probe
from medray.tasks.base.protocol import Task, restore
from medray.types import Engine, Example, Prediction

PROBE_TEXTS = (
    "Synthetic probe one: histology of the resected specimen showed an infiltrating carcinoma with nodal metastasis.",
    "Synthetic probe two: blood pressure fell after twelve weeks of treatment in a randomised crossover trial.",
    "Synthetic probe three: a short note.",
)
_CLOUD = "embeddings.safetensors"  # in a checkpoint: what its validation rows' embeddings are like
TRAIN_ROWS = "train_rows.safetensors"  # in a checkpoint: hashes of the rows that trained it
_TOLERANCE = 1e-3  # between machines in fp32; another adapter, head or base differs by far more


@dataclass(frozen=True)
class Loaded:
    manifest: Manifest
    task: Task
    engine: Engine
    built: Built
    calibration: CalibrationRecord = AS_IT_IS  # of a release; a checkpoint alone has none

    def predict(self, examples: Sequence[Example]) -> list[Prediction]:
        return calibrated(self.task, self.calibration, self.task.predict(self.engine, examples))


def load(place: Path | str, *, precision: Precision | None = None, device: str = "cpu", verify: bool = True) -> Loaded:
    """Rebuild a checkpoint from a folder or URI, by default in the arithmetic it was trained in. Hashes, base weights and probe are compared first."""
    folder = files.fetch(str(place))
    manifest = checkpoint.verify(folder) if verify else checkpoint.read(folder)
    base = sources.resolve(manifest.model.source, manifest.base.revision)
    if base.weight_hash != manifest.base.weight_hash:
        raise ArtifactError(
            f"{folder}: was trained on {manifest.base.source} with weights {manifest.base.weight_hash[:12]}, found {base.weight_hash[:12]}"
        )
    task = restore(manifest.task.options, manifest.task.state)
    built = build(base, task.head(), manifest.model, None, adapter_dir=None if manifest.is_untuned else folder)
    built.model.to(device)

    def engine(used: Precision) -> Engine:
        return TransformersEngine(built, precision=used, token_budget=manifest.token_budget, device=device)

    if verify:
        prove(folder, manifest.probe, answers(task, engine("fp32")))
    return Loaded(manifest, task, engine(precision or manifest.precision.used), built)


def untuned(config: TrialConfig, *, device: str = "cpu") -> Engine:
    """The base model of a trial as it is, for tasks that a language model can be asked without training; in fp32 where nothing else was asked for."""
    built = build(sources.resolve(config.model.source, config.model.revision), None, config.model, None)
    built.model.to(device)
    precision = "fp32" if config.model.precision == "auto" else config.model.precision
    return TransformersEngine(built, precision=precision, token_budget=config.train.token_budget, device=device)


def merged(loaded: Loaded) -> Engine:
    """The plain model that the checkpoint is merged into, in the same arithmetic. In place: `loaded` is used up."""
    engine = loaded.engine
    assert isinstance(engine, TransformersEngine)
    plain = replace(loaded.built, model=merge(loaded.built))
    return TransformersEngine(plain, precision=engine.precision, token_budget=engine.token_budget, device=str(engine.device))


def answers(task: Task, engine: Engine) -> npt.NDArray[np.float64]:
    """What a model says to the probe texts."""
    return task.probe(engine, [Example(id=f"probe-{number}", text=text) for number, text in enumerate(PROBE_TEXTS)])


def write_cloud(folder: Path, cloud: Cloud) -> None:
    save_file(cloud.arrays(), folder / _CLOUD)


def read_cloud(folder: Path) -> Cloud | None:
    """None where a checkpoint has kept none: of a task without a head for rows, of few rows, from elsewhere, or of an earlier medray."""
    path = folder / _CLOUD
    return Cloud.from_arrays(load_file(path)) if path.is_file() else None


def read_train_rows(folder: Path) -> Hashes | None:
    """None where a checkpoint has kept none: it was not trained, or elsewhere, or by an earlier medray."""
    path = folder / TRAIN_ROWS
    return load_file(path)["hashes"] if path.is_file() else None


def make_probe(task: Task, engine: Engine) -> Probe:
    return Probe(texts=PROBE_TEXTS, outputs=tuple(tuple(row) for row in answers(task, engine).tolist()))


def prove(folder: Path, probe: Probe, found: npt.NDArray[np.float64]) -> None:
    if probe.texts != PROBE_TEXTS:
        raise ArtifactError(f"{folder}: its probe was made from other texts than this medray knows")
    wanted = np.array(probe.outputs)
    if wanted.shape != found.shape or not np.allclose(wanted, found, atol=_TOLERANCE, rtol=_TOLERANCE):
        raise ArtifactError(f"{folder}: answers its probe with {found.round(4).tolist()} instead of {wanted.round(4).tolist()}")
