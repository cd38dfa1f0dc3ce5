"""The result of a study: its leaderboard, its winner, and what to do with them."""

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medray.config.schema import validate
from medray.config.study import CalibrationConfig
from medray.data import frames
from medray.evaluation import leaderboard_files
from medray.evaluation.leaderboard import Entry, Leaderboard
from medray.records import SETTINGS
from medray.storage import files
from medray.study import publish
from medray.study.run import Run, latest

if TYPE_CHECKING:
    import pandas as pd

    from medray.config.trial import Precision
    from medray.registry.loading import LoadedRelease
    from medray.registry.release import Release


@dataclass(frozen=True, repr=False)
class Result:
    """A run that has ended. `Result.of("runs/cancer")` opens the latest one in a study's folder.

    >>> result = medray.Result.of(finished)
    >>> result.winner.kind, list(result.leaderboard)[:2]
    ('trial', ['place', 'name'])
    """

    folder: Path  # of the run
    release: "Release | None" = None  # of the winner, where the study published it

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", Path(files.check_place(self.folder, "Result")))

    @classmethod
    def of(cls, folder: str | Path) -> "Result":
        """Open the latest run in a study's folder, or the run of this folder itself. Raise where
        the study has not ended."""
        run = latest(Path(files.check_place(folder, "Result.of")))
        run.leaderboard()
        return cls(run.folder)

    @property
    def board(self) -> Leaderboard:
        """The leaderboard as an object, with the comparisons of its entries."""
        return Run(self.folder).leaderboard()

    @property
    def leaderboard(self) -> "pd.DataFrame":
        """The leaderboard as a DataFrame of pandas, best first; columns name their split."""
        import pandas as pd

        return pd.DataFrame(list(leaderboard_files.rows(self.board)))

    @property
    def winner(self) -> Entry:
        """The best entry: its `name`, `base_model`, `settings`, and figures in `validation` and
        `test`."""
        return self.board.best

    @property
    def figures(self) -> Mapping[str, float]:
        """The winner's figures on test rows; `low` and `high` bound the study's metric (95 %)."""
        board = self.board
        spread = board.best.test_interval
        bounds = {"low": spread.low, "high": spread.high} if spread else {}
        return {**board.best.test, **bounds}

    @property
    def yaml(self) -> str:
        """The whole settings of this run, without secrets."""
        return (self.folder / SETTINGS).read_text(encoding="utf-8")

    def report(self, output: str | Path | None = None) -> Path:
        """Write the report as one page and return its path."""
        from medray.reports import html_report
        from medray.reports.study_data import gather

        default = self.folder / html_report.REPORT
        place = Path(files.check_place(output or default, "report"))
        return html_report.write(html_report.compose(gather(Run(self.folder))), place)

    def publish(
        self,
        name: str,
        *,
        alias: str | None = None,
        notes: str = "",
        abstain_precision: float | None = None,
        storage_path: str | Path | None = None,
    ) -> "Release":
        """Publish the winner as the next version of a release, and point an alias at it.

        A winner that is published already with the same calibration keeps its version.
        `abstain_precision`, between 0 and 1, is the share of answers that shall be right: the
        least certain ones are marked as abstained. By default releases lie where the study's are.
        """
        from medray.registry.registry import Registry, check_alias

        # A mistake must show before a version exists.
        if alias is not None:
            check_alias(alias)
        frames.check_text(notes, "publish: notes")
        rule = {"abstain_precision": abstain_precision}
        validate(CalibrationConfig, rule, where="publish")
        place = Run(self.folder).storage_dir if storage_path is None else storage_path
        registry = Registry(files.check_place(place, "storage_path"))
        release = publish.publish(
            registry, str(self.folder), name, notes=notes, abstain_precision=abstain_precision
        )
        if alias is not None:
            registry.point(name, alias, release.record.version, digest=release.digest)
        return release

    def load(
        self, *, device: str = "auto", precision: "Precision | None" = None
    ) -> "LoadedRelease":
        """Load the winner, as `medray.load` does: the release that the study published, else the
        checkpoint of its run."""
        from medray.models.precision import check_precision, device_of
        from medray.registry.loading import load

        if self.release:
            return self.release.load(device=device_of(device), precision=precision)
        assert self.winner.checkpoint is not None, "a winner has a checkpoint"
        if precision is not None:
            check_precision(precision, "load")
        return load(self.winner.checkpoint, device=device_of(device), precision=precision)

    def __repr__(self) -> str:
        run = Run(self.folder)
        return "\n".join(leaderboard_files.sentences(run.leaderboard(), run.analysis()))

    def _repr_html_(self) -> str:
        """The picture of the leaderboard with its intervals, and the table."""
        from medray.reports.ranking import leaderboard
        from medray.reports.study_data import gather

        data = gather(Run(self.folder))
        charts = leaderboard(data).charts()
        picture = next((chart.drawing.svg(standalone=True) for chart in charts), "")
        heads, rows = leaderboard_files.cells(data.board)
        table = [_row("th", heads), *(_row("td", row) for row in rows)]
        first = leaderboard_files.sentences(data.board, data.analysis)[0]
        return f"<p>{escape(first)}</p>{picture}<table>{''.join(table)}</table>"


def _row(tag: str, cells: Any) -> str:
    return f"<tr>{''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in cells)}</tr>"
