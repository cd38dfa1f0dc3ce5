"""From a run's leaderboard to a release: which checkpoint won, with its figures on test rows."""

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
from medray.tasks.base.protocol import restore, task_options
from medray.types import Example


def of_study(study: StudyConfig, run: Run, board: Leaderboard) -> Release:
    """Publish the winner and point the alias at it; a study that is resumed does not publish the
    same again."""
    assert study.publish is not None
    options = study.publish
    registry = Registry(options.storage_path or str(run.storage_dir))
    notes = f"winner of the study {study.name}"
    release = _publish(registry, run, board, board.best, options.name, notes)
    # Pointed once: a study that is looked at again must not undo a promotion or rollback that came
    # after it.
    pointed = [move.version for move in registry.history(options.name, options.alias)]
    same = (
        other
        for other in registry.readable(options.name)
        if other.record.content_id == release.record.content_id
    )
    ours = {other.record.version for other in same}.intersection(pointed)
    if release.record.version not in pointed and (not ours or pointed[-1] in ours):
        registry.point(options.name, options.alias, release.record.version)
    return release


def withheld(study: StudyConfig, board: Leaderboard) -> str | None:
    """Why the winner must not be published: a baseline is better, and the study does not allow
    that."""
    if study.publish is None or study.publish.allow_worse or not (better := board.better_baselines):
        return None
    baseline, winner, metric = better[0], board.best, board.metric
    return (
        f"study {study.name}: the winner {winner.name} is not published, since on validation rows "
        f"{baseline.name} is better"
        f" ({metric} {baseline.validation[metric]:.4f} against {winner.validation[metric]:.4f});"
        " search on with --resume search.num_trials=N, or publish it all the same with --resume "
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
    """Publish a study's or run's winner, or a checkpoint; with its test figures where its run has
    them.

    `abstain_precision` replaces the rule of its study.
    """
    folder = Path(place) if Path(place).exists() else files.absolute(place)
    if "://" in place or (folder / MANIFEST).is_file():
        run, entry = _find_entry(folder)
        if run and entry:
            return _publish(registry, run, run.leaderboard(), entry, name, notes, abstain_precision)
        if abstain_precision is not None:
            raise ArtifactError(
                f"{place}: was not judged in a run that is there, so there are no validation rows "
                "to fit an abstention on"
            )
        return registry.publish(place, name, notes=notes)
    run = latest(folder)
    board = run.leaderboard()
    return _publish(registry, run, board, board.best, name, notes, abstain_precision)


def _find_entry(checkpoint_dir: Path) -> tuple[Run | None, Entry | None]:
    """The run that a checkpoint still lies in, and its line on the leaderboard."""
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
    calibration = model.calibration if model else AS_IT_IS
    if abstain_precision is not None:
        calibration = _refit(run, folder, abstain_precision)
        test = test.model_copy(
            update={"answered": None}
        )  # its threshold was not tried on test rows
    merge = leaderboard.merge_of(entry, board.metric)
    if release := registry.find(name, folder, calibration):
        release.mend(folder)
        return release
    return registry.publish(
        folder, name, test=test, merge=merge, calibration=calibration, notes=notes
    )


def _refit(run: Run, folder: Path, precision: float) -> CalibrationRecord:
    """From the checkpoint's stored answers, and the labels of its study's validation rows."""
    study, rows = _validation(run, folder, precision)
    manifest = checkpoint.read(folder)
    return fit_calibration(
        restore(manifest.task.options, manifest.task.state),
        read_predictions(folder),
        rows,
        study.calibration,
    )


def _validation(
    run: Run, folder: Path, abstain_precision: float
) -> tuple[StudyConfig, Sequence[Example]]:
    """The rows that a checkpoint was validated on, and its study with this rule of abstention."""
    study, manifest = run.settings(), checkpoint.read(folder)
    dataset = datasets.load(study.data, task_options(study.task).bring)
    if (manifest.data_fingerprint, manifest.split_fingerprint) != (
        dataset.fingerprint,
        dataset.split_fingerprint,
    ):
        raise ArtifactError(
            f"{folder}: the data or its split is another than the one it was trained on: nothing "
            "can be fitted"
        )
    calibration = study.calibration.model_copy(update={"abstain_precision": abstain_precision})
    study = study.model_copy(update={"calibration": calibration})
    # In the order of the checkpoint's answers: files that were sorted anew have the same
    # fingerprints.
    places = {
        example.id: place for place, example in enumerate(examples.outlines(dataset.validation))
    }
    return study, examples.take(
        dataset.validation, [places[answer.row_id] for answer in read_predictions(folder)]
    )
