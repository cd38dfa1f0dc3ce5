"""Load a checkpoint's folder: its task, engine and calibration, checked by its probe."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import load_file, save_file

from medray.client.answers import Citations, Explanation, MarkedText, MentionAnswer
from medray.config.trial import Precision, TrialConfig
from medray.data import frames
from medray.data.formats.base.question_parsing import check_questions
from medray.data.minhash import RowHashes
from medray.engines.transformers import TransformersEngine
from medray.errors import ArtifactError, ConfigError, DataError
from medray.evaluation.calibration import calibrate
from medray.evaluation.novelty import Cloud
from medray.models import frozen_weights, sources
from medray.models.batch import evaluation_tokens
from medray.models.build import BuiltModel, build
from medray.models.build import merge as merge_adapter
from medray.models.precision import check_precision, default_precision
from medray.models.sources import Base
from medray.records import AS_IT_IS, CalibrationRecord
from medray.registry.explanation import explain
from medray.registry.probe import ROUNDING, TOLERANCE, check_probe, probe_outputs
from medray.storage import checkpoint, files
from medray.storage.checkpoint import Manifest
from medray.tasks.base import citations
from medray.tasks.base.protocol import Calibrated, Chatting, QuestionTask, Task, restore
from medray.tasks.base.questions import Decisions, QuestionError, decide, questions_of
from medray.types import (
    Engine,
    Example,
    Floats,
    Head,
    Message,
    Prediction,
    Question,
    QuestionAnswer,
)

if TYPE_CHECKING:
    from medray.registry.release import Release

# in a checkpoint: the distribution of its validation rows' embeddings
_CLOUD = "embeddings.safetensors"
TRAIN_ROWS = "train_rows.safetensors"  # in a checkpoint: hashes of its training rows


@dataclass(frozen=True, repr=False)
class LoadedRelease:
    """A task, its engine, and the calibration of its probabilities.

    Python, batches and the terminal predict through this class. Over HTTP, requests share an
    engine, so the service calls task and calibration itself. An unpublished checkpoint loads as
    version 0 of its own path."""

    name: str
    version: int
    folder: Path  # of the checkpoint, on this machine
    manifest: Manifest
    task: Task
    engine: Engine
    precision: Precision  # of the engine
    calibration: CalibrationRecord = AS_IT_IS
    is_merged: bool = False  # the adapter is part of the base's weights
    release: "Release | None" = None  # None for a checkpoint

    def __repr__(self) -> str:
        labels = f" among {', '.join(self.task.labels):.200}" if self.task.labels else ""
        return (
            f"{self.reference}: {self.task.options.name}{labels}; {self.manifest.base.source} in "
            f"{self.precision}"
        )

    @property
    def reference(self) -> str:
        return f"{self.name}@{self.version}" if self.version else self.name

    @property
    def model(self) -> BuiltModel:
        return self._transformers.model

    @property
    def device(self) -> str:
        return self._transformers.device.type

    @property
    def _transformers(self) -> TransformersEngine:
        assert isinstance(self.engine, TransformersEngine), (
            "another engine has its network in another process"
        )
        return self.engine

    def predict(
        self, inputs: Any, *, text: str | int | Sequence[str | int] | None = None
    ) -> list[Prediction]:
        """Return one calibrated prediction per input, in order. The id of a text is its
        position.

        A prediction has its `labels`, the `probabilities` of `task.labels`, its `confidence`, and
        `abstained`. Other tasks fill in `text`, `mentions` or `answers`.

        The inputs are texts, examples, or a table: a DataFrame, a mapping of columns or a list of
        rows. Its column `text` holds the texts; several columns are joined. Without `text`, names
        such as `text` or `abstract` decide, as for `medray predict`. A missing value in a table is
        an empty text."""
        return self._predict(frames.examples_of(inputs, text))

    def _predict(self, examples: Sequence[Example]) -> list[Prediction]:
        return calibrate(self.task, self.calibration, self.task.predict(self.engine, examples))

    def predict_proba(
        self, inputs: Any, *, text: str | int | Sequence[str | int] | None = None
    ) -> Floats:
        """Return calibrated probabilities: a row per input, a column per label of `task.labels`."""
        if not self.task.labels:
            raise ConfigError(
                f"{self.reference}: has no probabilities of labels; use a release with labels"
            )
        rows = [row.probabilities for row in self.predict(inputs, text=text)]
        return np.array(rows, dtype=np.float64).reshape(len(rows), len(self.task.labels))

    def explain(self, text: str, *, label: str | None = None) -> Explanation:
        """Return how much each word of a text speaks for a label, by default the predicted one."""
        frames.check_text(text, "explain: the text")
        return explain(self.task, self._transformers, self.predict([text])[0], text, label)

    def mark(self, text: str) -> MarkedText:
        """Return a text with its mentions, which a notebook shows in color."""
        if self.task.labels or isinstance(self.task, Chatting | QuestionTask):
            raise ConfigError(
                f"{self.reference}: finds no mentions; use a release of task tagging or extraction"
            )
        frames.check_text(text, "mark: the text")
        (prediction,) = self.predict([text])
        mentions = sorted(prediction.mentions, key=lambda mention: (mention.start, -mention.end))
        return MarkedText(text, tuple(MentionAnswer(**asdict(mention)) for mention in mentions))

    @property
    def card(self) -> str:
        """The release's model card in Markdown."""
        return self._own_release.card

    def export(self, target: str | Path, *, merged: bool = False) -> None:
        """Write a folder in the Hub's layout: the adapter, or with `merged` a plain model."""
        place = Path(files.check_place(target, "export"))
        self._own_release.export(place, merged=merged)

    @property
    def _own_release(self) -> "Release":
        if self.release is None:
            raise ArtifactError(f"{self.reference}: is no release; publish the checkpoint first")
        return self.release

    def cite(
        self, text: str, prediction: Prediction, *, most_sentences: int | None = None
    ) -> Citations:
        """Return the sentences of a text on which its prediction rests. The model reads the text
        again without each sentence. Raise if the text has more than `most_sentences`."""
        frames.check_text(text, "cite: the text")
        if not isinstance(prediction, Prediction):
            raise DataError(
                f"cite: the prediction is of type {type(prediction).__name__}; give one of those "
                "that predict returns"
            )
        if isinstance(self.task, Calibrated):
            attribution = citations.of_labels(self.task, self._predict, text, prediction)
        elif isinstance(self.task, Chatting):
            talker, tokenizer = self.task, self.engine.tokenizer
            attribution = citations.of_reply(
                (Message("user", text),),
                talker.answer(prediction.text, tokenizer),
                lambda turns: talker.prompt(turns, tokenizer, talker.options.max_new_tokens),
                self.engine.score,
            )
        else:
            raise ConfigError(
                f"{self.reference}: predictions of task {self.task.options.name} have no "
                "citations; ask `decide` for those of answers to typed questions"
            )
        return attribution.cite(most_sentences)[0]

    def decide(
        self,
        text: str,
        questions: Sequence[Question | Mapping[str, Any]] | Mapping[str, Any] = (),
        *,
        with_citations: bool = False,
    ) -> Decisions:
        """Answer typed questions about a text, by default those that the release was trained for.
        They have the form of data files and of `/v1/decisions`, such as
        `{"urgent": {"type": "predicate", "instructions": "Is it urgent?"}}`, or are objects of
        `medray.types.Question`. An answer has its `value`, its `confidence`, and the
        `probabilities` of its `values`.

        >>> release = medray.load("cancer@best")
        >>> (answer,) = release.decide("The patient was well.").answers
        >>> answer.values
        ('cancer', 'other')
        """
        frames.check_text(text, "decide: the text")
        items = check_questions(questions, "decide") or questions_of(self.task)
        if not items:
            raise QuestionError(
                f"{self.reference}: it answers no questions; use a release with labels"
            )
        decisions = self.answer(text, items)
        if not with_citations:
            return decisions
        return replace(decisions, citations=self.cite_answers(text, items, decisions.answers))

    def answer(self, text: str, questions: Sequence[Question]) -> Decisions:
        """Answer questions that were checked before, as those of a request are."""
        (decisions,) = decide(self.task, self.calibration, self._predict, [text], questions)
        return decisions

    def cite_answers(
        self,
        text: str,
        questions: Sequence[Question],
        answers: Sequence[QuestionAnswer],
        *,
        most_sentences: int | None = None,
    ) -> tuple[Citations, ...]:
        """Return the sentences on which each answer of `decide` rests."""
        frames.check_text(text, "cite_answers: the text")
        is_list = isinstance(questions, Sequence) and isinstance(answers, Sequence)
        if not is_list or len(questions) != len(answers):
            raise DataError("cite_answers: give a list of questions, and an answer to each")
        attribution = citations.of_questions(
            self.task, self.calibration, self._predict, text, questions, answers
        )
        return tuple(attribution.cite(most_sentences))

    def in_precision(
        self, precision: Precision, *, token_budget: int | None = None
    ) -> "LoadedRelease":
        """Return the same network behind an engine with another precision or token budget."""
        check_precision(precision, self.reference)
        engine = self._transformers
        budget = token_budget or engine.token_budget
        other = TransformersEngine(
            engine.model, precision=precision, token_budget=budget, device=str(engine.device)
        )
        return replace(self, engine=other, precision=precision)

    def merge(self, weights: Precision = "fp32") -> "LoadedRelease":
        """Add the adapter to the base's weights, which become plain ones of this precision, and
        return the plain model. The merge is in place, so `self` cannot be used afterwards."""
        check_precision(weights, self.reference)
        engine = self._transformers
        plain = merge_adapter(engine.model, weights)
        plain.network.eval()
        other = TransformersEngine(
            plain,
            precision=engine.precision,
            token_budget=engine.token_budget,
            device=str(engine.device),
        )
        return replace(self, engine=other, is_merged=True)

    def check_probe(self) -> None:
        """Raise unless the engine's outputs for the probe are those of the manifest. In 16 bits
        they may be rounded."""
        outputs = probe_outputs(self.task, self.engine)
        tolerance = TOLERANCE if self.precision == "fp32" else ROUNDING
        check_probe(self.folder, self.manifest.probe, outputs, tolerance)


def load(
    place: Path | str,
    *,
    precision: Precision | None = None,
    device: str = "cpu",
    verify: bool = True,
) -> LoadedRelease:
    """Rebuild a checkpoint from a folder or URI, by default in its training precision.

    `verify` checks hashes, base weights and probe first.
    """
    folder = files.fetch(str(place))
    manifest = checkpoint.verify(folder) if verify else checkpoint.read(folder)
    base = find_base(str(folder), manifest)
    task = restore(manifest.task.options, manifest.task.state)
    model = build(
        base, task.head(), manifest.model, None, adapter_dir=None if manifest.is_untuned else folder
    )
    precision = precision or manifest.precision.actual
    frozen_weights.move(model.network, device, precision)
    token_budget = evaluation_tokens(model.network, manifest.token_budget, device)
    engine = TransformersEngine(
        model, precision=precision, token_budget=token_budget, device=device
    )
    release = LoadedRelease(str(place), 0, folder, manifest, task, engine, precision)
    if verify:
        with frozen_weights.exact(model.network):
            release.in_precision("fp32").check_probe()
    return release


def find_base(where: str, manifest: Manifest) -> Base:
    """Return a checkpoint's base model. Raise if its weights differ from the training's."""
    base = sources.resolve(manifest.model.source, manifest.base.revision)
    if base.weight_hash != manifest.base.weight_hash:
        raise ArtifactError(
            f"{where}: was trained on {manifest.base.source} with weights "
            f"{manifest.base.weight_hash[:12]}, and this machine has {base.weight_hash[:12]}; "
            "restore the base model"
        )
    return base


def base_model_engine(
    config: TrialConfig, head: Head | None = None, *, device: str = "cpu"
) -> TransformersEngine:
    """Return an engine with a trial's base model before training, whose head, if any, is random. If
    the trial names no precision, it computes in fp32, or on a GPU in the GPU's own."""
    model = build(
        sources.resolve(config.model.source, config.model.revision), head, config.model, None
    )
    precision = default_precision(config.model.precision, device)
    frozen_weights.move(model.network, device, precision)
    return TransformersEngine(
        model,
        precision=precision,
        token_budget=evaluation_tokens(model.network, config.train.token_budget, device),
        device=device,
    )


def write_cloud(folder: Path, cloud: Cloud) -> None:
    save_file(cloud.arrays(), folder / _CLOUD)


def read_cloud(folder: Path) -> Cloud | None:
    """Return the embeddings' distribution, or None. A task without a head for rows, too few rows,
    an import or an earlier medray stores none."""
    path = folder / _CLOUD
    return Cloud.from_arrays(load_file(path)) if path.is_file() else None


def read_train_rows(folder: Path) -> RowHashes | None:
    """Return the hashes of the training rows, or None for a base model, an import or an earlier
    medray."""
    path = folder / TRAIN_ROWS
    return load_file(path)["hashes"] if path.is_file() else None
