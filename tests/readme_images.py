"""`python tests/readme_images.py [RUN]`: write README's badges, and its leaderboard from a run.

RUN is a finished run of jobs/studies/quickstart.yaml; the picture is a chart of its report, wide
and narrow, in the reader's light or dark mode."""

import sys
import tomllib
from pathlib import Path

from medray.reports import html_report
from medray.reports.study_data import gather
from medray.reports.svg import Drawing, standalone_css
from medray.study.run import latest

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"
CHART = "leaderboard-test"


def badges() -> dict[str, str]:
    """Return the badges' texts by file name, from pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    prefix = "Programming Language :: Python :: "
    versions = [
        name.removeprefix(prefix) for name in project["classifiers"] if name.startswith(prefix)
    ]
    return {
        "python.svg": badge("python", " | ".join(versions), "#0a67a8"),
        "license.svg": badge("license", project["license"], "#007a5a"),
    }


def badge(name: str, value: str, color: str) -> str:
    left, right = (7 * len(text) + 14 for text in (name, value))
    texts = "".join(
        f'<text x="{middle}" y="14" text-anchor="middle">{text}</text>'
        for middle, text in ((left / 2, name), (left + right / 2, value))
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + right}" height="20" role="img" '
        f'aria-label="{name}: {value}"><rect width="{left + right}" height="20" rx="3" '
        f'fill="#454c55"/><path d="M{left} 0h{right - 3}a3 3 0 0 1 3 3v14a3 3 0 0 1-3 3H{left}'
        f'z" fill="{color}"/><g fill="#fff" font-family="DejaVu Sans,Verdana,sans-serif" '
        f'font-size="11">{texts}</g></svg>\n'
    )


def leaderboard(run: Path) -> dict[str, str]:
    """Return the pictures of a run's leaderboard by file name."""
    charts = html_report.compose(gather(latest(run))).charts()
    chart = next(chart for chart in charts if chart.name == CHART)
    assert chart.narrow
    return {
        "leaderboard.svg": with_dark_mode(chart.drawing),
        "leaderboard-narrow.svg": with_dark_mode(chart.narrow),
    }


def with_dark_mode(drawing: Drawing) -> str:
    dark = f"@media (prefers-color-scheme:dark){{{standalone_css(is_dark=True)}}}"
    return drawing.svg(standalone=True).replace("</style>", f"{dark}</style>")


def main(arguments: list[str]) -> int:
    IMAGES.mkdir(parents=True, exist_ok=True)
    pictures = badges()
    for run in arguments:
        pictures |= leaderboard(Path(run))
    for name, text in pictures.items():
        (IMAGES / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
