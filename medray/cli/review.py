"""The command that shows a model's mistakes and the labels that may be wrong themselves."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from medray.cli.arguments import load
from medray.config.load import load_study

if TYPE_CHECKING:
    from medray.data.dataset import Dataset
    from medray.evaluation.analysis import SplitAnalysis

app = typer.Typer()


@app.command()
def review(
    of: Annotated[
        str,
        typer.Argument(
            help=(
                "a study's folder or that of a run, or a release, which needs a study's YAML for "
                "its rows"
            )
        ),
    ],
    arguments: Annotated[
        list[str] | None, typer.Argument(help="of a release: YAML files and key=value settings")
    ] = None,
    split: Annotated[
        str, typer.Option(help="validation, or test: then its labels are read, which is logged")
    ] = "validation",
    finalist: Annotated[
        str | None, typer.Option(help="a finalist's name; the winner where not given")
    ] = None,
    suspects: Annotated[
        bool,
        typer.Option("--suspects", help="only labels that may be wrong, the most doubtful first"),
    ] = False,
    texts: Annotated[
        bool, typer.Option("--texts", help="show the rows' texts, not only their ids")
    ] = False,
    max_rows: Annotated[int, typer.Option(help="rows to print; an export has all of them")] = 20,
    output: Annotated[
        str | None,
        typer.Option(
            help="write the rows to a new .csv or .jsonl, to fill in labels for data.corrections"
        ),
    ] = None,
    storage_path: Annotated[
        str | None,
        typer.Option(help="where releases are kept; the study's storage_path where not given"),
    ] = None,
) -> None:
    """Show wrong answers, the surest first, and labels that may be wrong themselves."""
    from medray.errors import ConfigError, suggest
    from medray.reports import review as reviews

    if split not in ("validation", "test"):
        raise ConfigError(
            f"--split {split!r} is not known; {suggest(split, ('validation', 'test'))}"
        )
    side: Literal["validation", "test"] = "test" if split == "test" else "validation"
    if Path(of).is_dir():
        if arguments or storage_path:
            raise ConfigError(
                f"{of}: a run knows its study: YAML files, settings and --storage-path are for a "
                "release"
            )
        found, shown = _of_run(Path(of), side, finalist, texts)
    else:
        if not arguments or finalist:
            raise ConfigError(
                f"{of}: is no folder; a release needs the YAML of a study with labelled rows, and "
                "takes no --finalist"
            )
        found, shown = _of_release(of, arguments, side, texts, storage_path)
    rows = reviews.rows(found, suspects_only=suspects, texts=shown)
    for row in rows[:max_rows]:
        print(reviews.render(row))
    wrong, doubted = len(found.mistakes), len(found.suspects)
    print(
        f"{wrong} of {found.num_rows} {split} rows are answered wrongly; {doubted} labels may be "
        "wrong themselves"
    )
    if output:
        reviews.export(rows, Path(output))
        print(
            f"{len(rows)} rows in {output}: fill in `label` where it was wrong, and give the file "
            f"as data.corrections={output}"
        )


def _of_run(
    folder: Path, side: Literal["validation", "test"], finalist: str | None, texts: bool
) -> "tuple[SplitAnalysis, dict[str, str] | None]":
    from medray.data import dataset as datasets
    from medray.errors import ArtifactError, ConfigError, suggest
    from medray.records import SETTINGS
    from medray.study.run import latest

    run = latest(folder)
    run.leaderboard()  # or says why there is none
    analysis = run.analysis()
    if analysis is None:
        raise ArtifactError(
            f"{run.folder}: has no analysis: its task answers in texts, or an earlier medray "
            "judged it"
        )
    chosen = analysis.of(finalist or analysis.winner)
    if chosen is None:
        raise ConfigError(
            f"--finalist {finalist!r} is no finalist of {run.folder}; "
            f"{suggest(str(finalist), [held.name for held in analysis.models])}"
        )
    if side == "validation" and not texts:
        return chosen.validation, None
    dataset = datasets.load(load_study([run.folder / SETTINGS]).data)
    if side == "test":  # its labels are about to be seen, which their log has to know
        dataset.open_test(run.storage_dir / "test_log", f"review {run.folder}")
    return (chosen.test if side == "test" else chosen.validation), _texts(
        dataset, side
    ) if texts else None


def _of_release(
    of: str,
    arguments: list[str],
    side: Literal["validation", "test"],
    texts: bool,
    storage_path: str | None,
) -> "tuple[SplitAnalysis, dict[str, str] | None]":
    from medray.data import dataset as datasets
    from medray.errors import ConfigError
    from medray.registry import evaluate
    from medray.storage import files

    asked = load(arguments)
    log_dir = files.absolute(asked.storage_path) / "test_log"
    judged = evaluate.evaluate(
        of, asked.data, side, storage_path=storage_path or asked.storage_path, log_dir=log_dir
    )
    if judged.analysis is None:
        raise ConfigError(f"{of}: answers in texts; only labels can be reviewed")
    return judged.analysis, _texts(datasets.load(asked.data), side) if texts else None


def _texts(dataset: "Dataset", side: str) -> dict[str, str]:
    return {
        example.id: example.text
        for example in (dataset.unlabelled_test() if side == "test" else dataset.validation)
    }
