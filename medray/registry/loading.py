"""From a checkpoint's folder back to what predicts: task, engine and calibration, proven by its
probe."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, save_file

from medray.config.study import Precision, TrialConfig
from medray.data.minhash import RowHashes
from medray.engines.transformers import TransformersEngine
from medray.errors import ArtifactError
from medray.evaluation.calibration import calibrate
from medray.evaluation.novelty import Cloud
from medray.models import sources
from medray.models.build import BuiltModel, build, merge
from medray.models.precision import untimed
from medray.models.sources import Base
from medray.records import AS_IT_IS, CalibrationRecord
from medray.storage import checkpoint, files
from medray.storage.checkpoint import Manifest, Probe
from medray.tasks.base.protocol import Task, restore
from medray.types import Engine, Example, Prediction

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
_CLOUD = "embeddings.safetensors"  # in a checkpoint: what its validation rows' embeddings are like
TRAIN_ROWS = "train_rows.safetensors"  # in a checkpoint: hashes of the rows that trained it
_TOLERANCE = 1e-3  # between machines in fp32; another adapter, head or base differs by far more


@dataclass(frozen=True)
class LoadedRelease:
    """A task, the engine that computes for it, and the calibration of its probabilities.

    Python, batches and the terminal predict through this class; HTTP, whose requests share an
    engine, calls its task and calibration. A checkpoint that is not published is loaded as version
    0 of its own place."""

    name: str
    version: int
    folder: Path  # of the checkpoint, on this machine
    manifest: Manifest
    task: Task
    engine: Engine
    precision: Precision  # that the engine computes in
    calibration: CalibrationRecord = AS_IT_IS
    is_merged: bool = False  # the adapter is part of the base's weights

    @property
    def reference(self) -> str:
        return f"{self.name}@{self.version}" if self.version else self.name

    @property
    def built(self) -> BuiltModel:
        return self._transformers.built

    @property
    def _transformers(self) -> TransformersEngine:
        assert isinstance(self.engine, TransformersEngine), (
            "the network of another engine lies in another process"
        )
        return self.engine

    def predict(self, inputs: Sequence[str | Example]) -> list[Prediction]:
        """One calibrated prediction per input, in order. The id of a text is its position."""
        examples = [
            row if isinstance(row, Example) else Example(str(number), row)
            for number, row in enumerate(inputs)
        ]
        return calibrate(self.task, self.calibration, self.task.predict(self.engine, examples))

    def in_precision(
        self, precision: Precision, *, token_budget: int | None = None
    ) -> "LoadedRelease":
        """The same network behind an engine that computes in another precision, or reads other
        batches."""
        engine = self._transformers
        budget = token_budget or engine.token_budget
        other = TransformersEngine(
            engine.built, precision=precision, token_budget=budget, device=str(engine.device)
        )
        return replace(self, engine=other, precision=precision)

    def merged(self) -> "LoadedRelease":
        """The plain model with the adapter added to the base's weights. In place: `self` is used
        up."""
        engine = self._transformers
        plain = merge(engine.built)
        plain.model.eval()
        other = TransformersEngine(
            plain,
            precision=engine.precision,
            token_budget=engine.token_budget,
            device=str(engine.device),
        )
        return replace(self, engine=other, is_merged=True)

    def check_probe(self) -> None:
        """Raise unless the engine gives the outputs that the manifest has for the probe. Meant for
        fp32."""
        check_probe(self.folder, self.manifest.probe, probe_outputs(self.task, self.engine))


def load(
    place: Path | str,
    *,
    precision: Precision | None = None,
    device: str = "cpu",
    verify: bool = True,
) -> LoadedRelease:
    """Rebuild a checkpoint from a folder or URI, by default in the precision that it was trained
    in.

    Hashes, base weights and probe are compared first.
    """
    folder = files.fetch(str(place))
    manifest = checkpoint.verify(folder) if verify else checkpoint.read(folder)
    base = find_base(str(folder), manifest)
    task = restore(manifest.task.options, manifest.task.state)
    built = build(
        base, task.head(), manifest.model, None, adapter_dir=None if manifest.is_untuned else folder
    )
    built.model.to(device)
    used = precision or manifest.precision.actual
    engine = TransformersEngine(
        built, precision=used, token_budget=manifest.token_budget, device=device
    )
    loaded = LoadedRelease(str(place), 0, folder, manifest, task, engine, used)
    if verify:
        loaded.in_precision("fp32").check_probe()
    return loaded


def find_base(where: str, manifest: Manifest) -> Base:
    """The base model that a checkpoint was trained on, with the same weights."""
    base = sources.resolve(manifest.model.source, manifest.base.revision)
    if base.weight_hash != manifest.base.weight_hash:
        raise ArtifactError(
            f"{where}: was trained on {manifest.base.source} with weights "
            f"{manifest.base.weight_hash[:12]}, found {base.weight_hash[:12]}"
        )
    return base


def untuned(config: TrialConfig, *, device: str = "cpu") -> Engine:
    """The base model of a trial before training, for tasks without a head; in fp32 where the trial
    names no precision."""
    built = build(
        sources.resolve(config.model.source, config.model.revision), None, config.model, None
    )
    built.model.to(device)
    return TransformersEngine(
        built,
        precision=untimed(config.model.precision),
        token_budget=config.train.token_budget,
        device=device,
    )


def write_cloud(folder: Path, cloud: Cloud) -> None:
    save_file(cloud.arrays(), folder / _CLOUD)


def read_cloud(folder: Path) -> Cloud | None:
    """None where a checkpoint keeps none: of a task without a head for rows, of few rows, imported,
    or of an earlier medray."""
    path = folder / _CLOUD
    return Cloud.from_arrays(load_file(path)) if path.is_file() else None


def read_train_rows(folder: Path) -> RowHashes | None:
    """None where a checkpoint keeps none: it is untuned, imported, or of an earlier medray."""
    path = folder / TRAIN_ROWS
    return load_file(path)["hashes"] if path.is_file() else None


def probe_outputs(task: Task, engine: Engine) -> npt.NDArray[np.float64]:
    """A row of figures per probe text, which the same model gives after every reload."""
    return task.probe(
        engine,
        [Example(id=f"probe-{number}", text=text) for number, text in enumerate(PROBE_TEXTS)],
    )


def make_probe(task: Task, engine: Engine) -> Probe:
    return Probe(
        texts=PROBE_TEXTS, outputs=tuple(tuple(row) for row in probe_outputs(task, engine).tolist())
    )


def check_probe(folder: Path, probe: Probe, outputs: npt.NDArray[np.float64]) -> None:
    if probe.texts != PROBE_TEXTS:
        raise ArtifactError(
            f"{folder}: its probe uses other texts than this medray; publish the checkpoint again"
        )
    wanted = np.array(probe.outputs)
    if wanted.shape != outputs.shape or not np.allclose(
        wanted, outputs, atol=_TOLERANCE, rtol=_TOLERANCE
    ):
        raise ArtifactError(
            f"{folder}: answers its probe with {outputs.round(4).tolist()} instead of "
            f"{wanted.round(4).tolist()}"
        )
