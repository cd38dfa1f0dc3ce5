"""The result of a study: its leaderboard, its winner, and what to do with them."""

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medray.evaluation import leaderboard_files
from medray.evaluation.leaderboard import Entry, Leaderboard
from medray.records import SETTINGS
from medray.study import publish
from medray.study.run import Run, latest

if TYPE_CHECKING:
    import pandas as pd

    from medray.registry.loading import LoadedRelease
    from medray.registry.release import Release


@dataclass(frozen=True, repr=False)
class Result:
    """A run that has ended. `Result.of("runs/cancer")` opens the latest one in a study's folder.

    >>> result = medray.Result.of(finished)
    >>> result.winner.kind, list(result.leaderboard)[:2]
    ('trial', ['place', 'name'])
    """

    folder: Path
    release: "Release | None" = None  # of the winner, where the study published it

    @classmethod
    def of(cls, folder: str | Path) -> "Result":
        run = latest(Path(folder))
        run.leaderboard()  # raises where the study has not ended
        return cls(run.folder)

    @property
    def board(self) -> Leaderboard:
        return Run(self.folder).leaderboard()

    @property
    def leaderboard(self) -> "pd.DataFrame":
        """The leaderboard as a DataFrame of pandas, best first; columns name their split."""
        import pandas as pd

        return pd.DataFrame(list(leaderboard_files.rows(self.board)))

    @property
    def winner(self) -> Entry:
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

        page = html_report.compose(gather(Run(self.folder)))
        return html_report.write(page, Path(output or self.folder / html_report.REPORT))

    def publish(
        self,
        name: str,
        *,
        alias: str | None = None,
        notes: str = "",
        abstain_precision: float | None = None,
        storage_path: str | None = None,
    ) -> "Release":
        """Publish the winner as the next version of a release, and point an alias at it."""
        from medray.registry.registry import Registry

        registry = Registry(storage_path or str(Run(self.folder).storage_dir))
        release = publish.publish(
            registry, str(self.folder), name, notes=notes, abstain_precision=abstain_precision
        )
        if alias:
            registry.point(name, alias, release.record.version, digest=release.digest)
        return release

    def load(self, *, device: str = "auto") -> "LoadedRelease":
        """Load the winner: the release where it is published, else its checkpoint."""
        from medray.models.precision import device_of
        from medray.registry.loading import load

        if self.release:
            return self.release.load(device=device_of(device))
        assert self.winner.checkpoint is not None, "a winner has a checkpoint"
        return load(self.winner.checkpoint, device=device_of(device))

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
