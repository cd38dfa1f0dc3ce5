"""Publish a checkpoint of a run as a release, with its metrics on test rows."""

from collections.abc import Sequence
from pathlib import Path

from medray.config.study import StudyConfig
from medray.data import dataset as datasets
from medray.data import examples
from medray.errors import ArtifactError
from medray.evaluation import leaderboard
from medray.evaluation.leaderboard import Entry, Leaderboard
from medray.records import AS_IT_IS, CalibrationRecord
from medray.registry import card
from medray.registry.predictions import fit_calibration, read_predictions
from medray.registry.registry import Registry
from medray.registry.release import Release
from medray.storage import checkpoint, files
from medray.storage.checkpoint import MANIFEST
from medray.study.run import LEADERBOARD, Run, latest
from medray.tasks.base.protocol import QuestionTask, has_confident_texts, restore, task_options
from medray.types import Example


def publish_winner(study: StudyConfig, run: Run, board: Leaderboard) -> Release:
    """Publish the winner and point the alias at it. A resumed study does not publish the same
    checkpoint twice."""
    assert study.publish is not None
    options = study.publish
    registry = Registry(options.storage_path or str(run.storage_dir))
    notes = f"winner of the study {study.name}"
    release = _publish(registry, run, board, board.best, options.name, notes)
    # Move the alias once: a resumed study must not undo a later promotion or rollback.
    alias_versions = [move.version for move in registry.history(options.name, options.alias)]
    same = (
        other
        for other in registry.readable(options.name)
        if other.record.content_id == release.record.content_id
    )
    ours = {other.record.version for other in same}.intersection(alias_versions)
    if release.record.version not in alias_versions and (not ours or alias_versions[-1] in ours):
        registry.point(options.name, options.alias, release.record.version)
    return release


def refusal(study: StudyConfig, board: Leaderboard) -> str | None:
    """Return why the winner must not be published, or None. A worse winner than a baseline needs
    `publish.allow_worse`."""
    if study.publish is None or study.publish.allow_worse or not (better := board.better_baselines):
        return None
    baseline, winner, metric = better[0], board.best, board.metric
    return (
        f"study {study.name}: the winner {winner.name} is not published: {baseline.name} is better "
        "on validation rows"
        f" ({metric} {baseline.validation[metric]:.4f} against {winner.validation[metric]:.4f});"
        " search further with --resume search.num_trials=N, or publish it anyway with --resume "
        "publish.allow_worse=true"
    )


def publish(
    registry: Registry,
    place: str,
    name: str,
    *,
    notes: str = "",
    abstain_precision: float | None = None,
) -> Release:
    """Publish the winner of a study or run, or a checkpoint, with its test metrics if its run has
    them.

    `abstain_precision` replaces the study's rule of abstention.
    """
    folder = Path(place) if Path(place).exists() else files.absolute(place)
    if "://" in place or (folder / MANIFEST).is_file():
        run, entry = _find_entry(folder)
        if run and entry:
            return _publish(registry, run, run.leaderboard(), entry, name, notes, abstain_precision)
        if abstain_precision is not None:
            raise ArtifactError(
                f"{place}: no run here evaluated it, so there are no validation rows to fit an "
                "abstention on; publish it without --abstain-precision"
            )
        return registry.publish(place, name, notes=notes)
    run = latest(folder)
    board = run.leaderboard()
    return _publish(registry, run, board, board.best, name, notes, abstain_precision)


def _find_entry(checkpoint_dir: Path) -> tuple[Run | None, Entry | None]:
    """Return the run that contains a checkpoint, and its entry on the leaderboard."""
    folder = checkpoint_dir.resolve()
    above = folder.parents
    if len(above) < 4 or not (above[3] / LEADERBOARD).is_file():
        return None, None
    run = Run(above[3])
    entries = (
        entry
        for entry in run.leaderboard().entries
        if entry.checkpoint and Path(entry.checkpoint) == folder and entry.test
    )
    return run, next(entries, None)


def _publish(
    registry: Registry,
    run: Run,
    board: Leaderboard,
    entry: Entry,
    name: str,
    notes: str,
    abstain_precision: float | None = None,
) -> Release:
    assert entry.checkpoint is not None
    folder = Path(entry.checkpoint)
    analysis = run.analysis()
    model = analysis.of(entry.name) if analysis else None
    test = card.test_record(board, entry, analysis)
    calibration = model.calibration if model else _answer_calibration(run, folder)
    if abstain_precision is not None:
        calibration = _refit(run, folder, abstain_precision)
        # The new threshold has no result on test rows.
        test = test.model_copy(update={"answered": None})
    merge = leaderboard.merge_of(entry, board.metric)
    if release := registry.find(name, folder, calibration):
        release.mend(folder)
        return release
    return registry.publish(
        folder, name, test=test, merge=merge, calibration=calibration, notes=notes
    )


def _answer_calibration(run: Run, folder: Path) -> CalibrationRecord:
    """Return the calibration of texts or of answers to typed questions, which no analysis has."""
    manifest = checkpoint.read(folder)
    task = restore(manifest.task.options, manifest.task.state)
    has_answers = isinstance(task, QuestionTask) or has_confident_texts(task)
    return _refit(run, folder, None) if has_answers else AS_IT_IS


def _refit(run: Run, folder: Path, precision: float | None) -> CalibrationRecord:
    """Fit a calibration to the checkpoint's stored predictions and its study's validation
    labels."""
    study, rows = _validation(run, folder, precision)
    manifest = checkpoint.read(folder)
    return fit_calibration(
        restore(manifest.task.options, manifest.task.state),
        read_predictions(folder),
        rows,
        study.calibration,
    )


def _validation(
    run: Run, folder: Path, abstain_precision: float | None
) -> tuple[StudyConfig, Sequence[Example]]:
    """Return a checkpoint's validation rows, and its study with a new rule of abstention."""
    study, manifest = run.settings(), checkpoint.read(folder)
    dataset = datasets.load(study.data, task_options(study.task).bring)
    if (manifest.data_fingerprint, manifest.split_fingerprint) != (
        dataset.fingerprint,
        dataset.split_fingerprint,
    ):
        raise ArtifactError(
            f"{folder}: the data or its split differs from its training; restore the data to fit "
            "an "
            "abstention"
        )
    if abstain_precision is not None:
        calibration = study.calibration.model_copy(update={"abstain_precision": abstain_precision})
        study = study.model_copy(update={"calibration": calibration})
    # Keep the order of the stored predictions. Files in another order have the same fingerprints.
    places = {
        example.id: place for place, example in enumerate(examples.outlines(dataset.validation))
    }
    return study, examples.take(
        dataset.validation, [places[prediction.row_id] for prediction in read_predictions(folder)]
    )
