"""The command that lists a model's mistakes and the labels that may be wrong."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from medray.cli.arguments import StudyStorage, load
from medray.cli.output import Json, Output, Quiet
from medray.config.load import load_study
from medray.errors import ArtifactError, ConfigError, UsageError, suggest

if TYPE_CHECKING:
    from medray.data.dataset import Dataset
    from medray.evaluation.analysis import SplitAnalysis

app = typer.Typer()
ReviewSplit = Literal["validation", "test"]


@app.command()
def review(
    model: Annotated[
        str,
        typer.Argument(
            help=(
                "a study's folder or the folder of one run; or a release, with the YAML of a study "
                "for its rows"
            )
        ),
    ],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(help="for a release: YAML files and key=value settings"),
    ] = None,
    split: Annotated[
        ReviewSplit, typer.Option(help="the rows to review; each reading of test labels is logged")
    ] = "validation",
    finalist: Annotated[
        str | None, typer.Option(help="name of a finalist; by default the winner")
    ] = None,
    suspects: Annotated[
        bool,
        typer.Option("--suspects", help="only labels that may be wrong, the most doubtful first"),
    ] = False,
    texts: Annotated[
        bool, typer.Option("--texts", help="print the rows' texts, not only their ids")
    ] = False,
    max_rows: Annotated[int, typer.Option(help="rows to print; --output writes all of them")] = 20,
    output: Annotated[
        Path | None,
        typer.Option(
            help="write the rows to a new .csv or .jsonl, to fill in labels for data.corrections"
        ),
    ] = None,
    storage_path: StudyStorage = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """List wrong predictions, the most confident first, and labels that may be wrong."""
    from medray.reports import review as reviews

    out = Output.start(as_json, quiet)
    if Path(model).is_dir():
        if arguments or storage_path:
            raise UsageError(
                f"{model}: a run knows its study; drop YAML files, settings and --storage-path, "
                "which are for a release"
            )
        analysis, row_texts = _of_run(Path(model), split, finalist, texts)
    else:
        if not arguments or finalist:
            raise UsageError(
                f"{model}: is no folder; for a release, give the YAML of a study with labelled "
                "rows and drop --finalist"
            )
        analysis, row_texts = _of_release(model, arguments, split, texts, storage_path)
    rows = reviews.rows(analysis, suspects_only=suspects, texts=row_texts)
    parts = [part.figures for part in analysis.questions] or [analysis]
    num_wrong = sum(len(part.mistakes) for part in parts)
    num_suspects = sum(len(part.suspects) for part in parts)
    what = f"answers to {split} rows" if analysis.questions else f"{split} rows"
    lines = [
        *(reviews.render(row) for row in rows[:max_rows]),
        f"{num_wrong} of {sum(part.num_rows for part in parts)} {what} are predicted wrongly; "
        f"{num_suspects} labels may be wrong",
    ]
    if output and analysis.questions:
        reviews.export(rows, output)
        lines.append(f"{len(rows)} rows in {output}; correct the answers in the data itself")
    elif output:
        reviews.export(rows, output)
        lines.append(
            f"{len(rows)} rows in {output}: fill in `label` where it was wrong, and give the file "
            f"as data.corrections={output}"
        )
    document = {
        "split": split,
        "num_rows": analysis.num_rows,
        "num_wrong": num_wrong,
        "num_suspects": num_suspects,
        "rows": [asdict(row) for row in rows[:max_rows]],
        "output": str(output) if output else None,
    }
    out.result(document, *lines)


def _of_run(
    folder: Path, split: ReviewSplit, finalist: str | None, texts: bool
) -> "tuple[SplitAnalysis, dict[str, str] | None]":
    """Return the analysis of a run's finalist, and its rows' texts where they were requested."""
    from medray.data import dataset as datasets
    from medray.records import SETTINGS
    from medray.study.run import latest

    run = latest(folder)
    run.leaderboard()  # raises where the study has not ended
    analysis = run.analysis()
    if analysis is None:
        raise ArtifactError(
            f"{run.folder}: has no analysis, since its task generates text or an older medray "
            "evaluated it; only predicted labels can be reviewed"
        )
    entry = analysis.of(finalist or analysis.winner)
    if entry is None:
        raise ConfigError(
            f"--finalist {finalist!r} is no finalist of {run.folder}; "
            f"{suggest(str(finalist), [model.name for model in analysis.models])}"
        )
    if split == "validation" and not texts:
        return entry.validation, None
    dataset = datasets.load(load_study([run.folder / SETTINGS]).data)
    if split == "test":  # its labels are about to be printed, which their log records
        dataset.open_test(run.storage_dir / "test_log", f"review {run.folder}")
    side = entry.test if split == "test" else entry.validation
    return side, _texts(dataset, split) if texts else None


def _of_release(
    reference: str, arguments: list[str], split: ReviewSplit, texts: bool, storage_path: str | None
) -> "tuple[SplitAnalysis, dict[str, str] | None]":
    """Evaluate a release on a study's rows, and return its analysis and the rows' texts."""
    from medray.data import dataset as datasets
    from medray.registry import evaluate
    from medray.storage import files

    study = load(arguments)
    evaluation = evaluate.evaluate(
        reference,
        study.data,
        split,
        storage_path=storage_path or study.storage_path,
        log_dir=files.absolute(study.storage_path) / "test_log",
    )
    if evaluation.analysis is None:
        raise ConfigError(f"{reference}: generates text; only predicted labels can be reviewed")
    return evaluation.analysis, _texts(datasets.load(study.data), split) if texts else None


def _texts(dataset: "Dataset", split: ReviewSplit) -> dict[str, str]:
    rows = dataset.unlabelled_test() if split == "test" else dataset.validation
    return {example.id: example.text for example in rows}
