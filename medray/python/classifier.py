"""`medray.Classifier`: fine-tunes one base model behind the interface of scikit-learn."""

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d

from medray.config.files import put_all
from medray.config.load import study_of
from medray.config.study import CalibrationConfig, StudyConfig
from medray.data import duplicates, frames
from medray.data.dataset import Dataset
from medray.data.first_study import BASE_MODEL
from medray.data.reading import ExampleSet
from medray.errors import ConfigError, DataError
from medray.registry import loading
from medray.registry.loading import LoadedRelease
from medray.registry.predictions import fit_calibration, read_predictions
from medray.storage import files
from medray.tasks.base import protocol as tasks
from medray.training.material import gather
from medray.training.trial import Trial
from medray.types import Example, Floats, Split

Classes = npt.NDArray[Any]
_MOST_SEED = 2**31 - 1


class Classifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A text classifier: `fit` trains LoRA on a base model in this process, without Ray.

    A share of the rows, `validation_fraction`, chooses the best epoch and calibrates the
    probabilities; duplicates of its texts do not train. `settings` are further settings of a study
    by their dotted names, such as `{"task.pooling": "mean"}`.

    >>> classifier = medray.Classifier(base_model=base, epochs=1, learning_rate=0.01)
    >>> classifier.fit(texts, labels).predict(texts[:2]).shape
    (2,)
    """

    def __init__(
        self,
        base_model: str = BASE_MODEL,
        *,
        epochs: int = 3,
        learning_rate: float | None = None,
        max_length: int = 256,
        lora_r: int = 16,
        class_weights: str = "none",
        metric: str = "f1_macro",
        validation_fraction: float = 0.2,
        settings: Mapping[str, Any] | None = None,
        random_state: Any = 0,
    ) -> None:
        self.base_model = base_model
        self.epochs = epochs
        self.learning_rate = learning_rate
        self.max_length = max_length
        self.lora_r = lora_r
        self.class_weights = class_weights
        self.metric = metric
        self.validation_fraction = validation_fraction
        self.settings = settings
        self.random_state = random_state

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string, tags.input_tags.two_d_array = True, False
        return tags

    def fit(self, X: Any, y: Any) -> "Classifier":
        """Fine-tune the base model on texts and their classes, one per text."""
        texts, classes = _texts(X), _classes(y)
        if not texts:
            raise DataError("X: has no texts; give some")
        if len(classes) != len(texts):
            raise DataError(
                f"y: has {len(classes)} classes; give one class for each of {len(texts)} texts"
            )
        unique, codes = np.unique(classes, return_inverse=True)
        if len(unique) < 2:
            raise DataError(f"y: all texts have one class, {str(unique[0])!r}; give at least two")
        names = _names(unique.tolist())
        examples = [
            Example(str(number), text, (names[code],))
            for number, (text, code) in enumerate(zip(texts, codes, strict=True))
        ]
        seed = self._seed()
        study = self._study(seed, names)
        dataset = _dataset(examples, codes.tolist(), self.validation_fraction, study, seed)
        with tempfile.TemporaryDirectory() as folder:
            release = _train(study, dataset, Path(folder))
            # A fit that failed leaves the model of the one before as it was.
            self.classes_, self._names = unique, names
            self.calibration_ = release.calibration
            self.files_ = {
                str(path.relative_to(release.folder)): path.read_bytes()
                for path in files.files(release.folder)
            }
        self._release = replace(release, release=None)
        return self

    def predict(self, X: Any) -> Classes:
        """Return the class of each text."""
        check_is_fitted(self, "classes_")
        rows = self.release_.predict(_texts(X))
        answers: Classes = self.classes_[[self._names.index(row.labels[0]) for row in rows]]
        return answers

    def predict_proba(self, X: Any) -> Floats:
        """Return calibrated probabilities: a row per text, a column per class of `classes_`."""
        check_is_fitted(self, "classes_")
        labels = self.release_.task.labels
        return self.release_.predict_proba(_texts(X))[
            :, [labels.index(name) for name in self._names]
        ]

    @property
    def release_(self) -> LoadedRelease:
        """The trained model, which also explains: `classifier.release_.explain(text)`."""
        check_is_fitted(self, "classes_")
        if self._release is None:  # after unpickling
            with tempfile.TemporaryDirectory() as folder:
                for name, content in self.files_.items():
                    files.write(Path(folder) / name, content)
                self._release = replace(loading.load(folder), calibration=self.calibration_)
        return self._release

    def __getstate__(self) -> dict[str, Any]:
        state = dict(super().__getstate__())
        return {**state, "_release": None} if "_release" in state else state

    def _seed(self) -> int:
        if isinstance(self.random_state, int | np.integer) and self.random_state >= 0:
            return int(self.random_state)
        try:
            return int(check_random_state(self.random_state).randint(_MOST_SEED))
        except ValueError as err:
            raise ConfigError(
                f"Classifier: random_state: {str(err).rstrip('.')}; give a whole number from 0"
            ) from None

    def _study(self, seed: int, names: Sequence[str]) -> StudyConfig:
        raw: dict[str, Any] = {
            "name": "classifier",
            "seed": seed,
            "data": {"format": {"name": "tables", "path": "classifier.parquet"}},
            "task": {
                "name": "classification",
                "metric": self.metric,
                "positive_label": names[1] if len(names) == 2 else None,
                "max_length": self.max_length,
                "class_weights": self.class_weights,
            },
            "base_models": [{"source": _text_of(self.base_model)}],
            "train": {"epochs": self.epochs, "learning_rate": self.learning_rate},
            "lora": {"r": self.lora_r},
        }
        settings = self.settings or {}
        if not isinstance(settings, Mapping) or not all(isinstance(key, str) for key in settings):
            raise ConfigError(
                f"Classifier: settings {settings!r:.60}: give a mapping by dotted names, such as "
                "{'lora.dropout': 0.1}"
            )
        put_all(raw, [(key, value, "settings") for key, value in settings.items()])
        return study_of(raw, "Classifier")


def _text_of(base_model: Any) -> Any:
    return str(base_model) if isinstance(base_model, Path) else base_model


def _texts(X: Any) -> list[str]:
    is_list = isinstance(X, Iterable) and not isinstance(X, str | Mapping)
    if not is_list or getattr(X, "ndim", 1) != 1 or frames.is_table(X):
        raise DataError(
            f"X: is a {type(X).__name__}, and a list of texts is expected; of a DataFrame, give a "
            "column: X['text']"
        )
    return [frames.check_text(text, f"X: row {number}") for number, text in enumerate(X)]


def _classes(y: Any) -> Classes:
    try:
        if isinstance(y, Iterator):
            y = list(y)
        classes: Classes = column_or_1d(y, warn=True)
        check_classification_targets(classes)
        np.unique(classes)  # a missing value has another type than the classes
    except (TypeError, ValueError) as err:
        kinds = {type(one).__name__ for one in y} if isinstance(err, TypeError) else set()
        reason = (
            f"has values of several types, {', '.join(sorted(kinds))}"
            if len(kinds) > 1
            else " ".join(str(err).split())
        )
        raise DataError(f"y: {reason}; give one class per text") from None
    return classes


def _names(classes: Sequence[Any]) -> list[str]:
    """Return a label per class: its text, or its number where texts are empty or equal."""
    names = [frames.check_text(str(name).strip(), "y: a class") for name in classes]
    is_clear = all(names) and len(set(names)) == len(names)
    return names if is_clear else [str(number) for number in range(len(names))]


def _dataset(
    examples: Sequence[Example],
    codes: Sequence[int],
    fraction: float,
    study: StudyConfig,
    seed: int,
) -> Dataset:
    """Split the rows into those that train and those that choose. Duplicates stay together, so no
    text that chooses also trains."""
    groups = duplicates.find([example.text for example in examples], study.data.near_duplicate)
    if not isinstance(fraction, Real) or not 0 < fraction <= 0.5:
        raise ConfigError(
            f"Classifier: validation_fraction {fraction!r} is no share; give a number above 0 and "
            "at most 0.5"
        )
    num_folds = round(1 / fraction)
    if len(set(groups.clusters)) < num_folds:
        raise DataError(
            f"X: has {len(set(groups.clusters))} different texts; give at least {num_folds}"
        )
    folds = StratifiedGroupKFold(num_folds, shuffle=True, random_state=seed)
    _, validation = next(folds.split(list(codes), list(codes), list(groups.clusters)))
    train_codes = {code for row, code in enumerate(codes) if row not in set(validation.tolist())}
    # A class whose texts are all duplicates of each other has to train.
    validation_rows = {row for row in validation.tolist() if codes[row] in train_codes}
    sides: list[Split | None] = [
        "validation" if row in validation_rows else "train" for row in range(len(examples))
    ]
    return Dataset(ExampleSet(list(examples), ()), sides, groups, study.data)


def _train(study: StudyConfig, dataset: Dataset, folder: Path) -> LoadedRelease:
    """Train the study's base model, and return it with its calibration."""
    config = study.trial(study.base_models[0])
    task = tasks.fit(config.task, dataset.label_sets(), dataset.train)
    material = gather(config, dataset, task, folder / "prepared")
    checkpoint = Trial(config, material, folder / "trial", lambda evaluation: None).run().checkpoint
    release = loading.load(checkpoint)
    by_id = {example.id: example for example in dataset.validation}
    predictions = read_predictions(checkpoint)
    rows = [by_id[prediction.row_id] for prediction in predictions]
    calibration = fit_calibration(release.task, predictions, rows, CalibrationConfig())
    return replace(release, calibration=calibration)
