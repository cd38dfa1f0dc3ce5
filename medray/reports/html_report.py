"""A report as one HTML page, which contains its styles, charts and script and loads nothing else.
Also its charts as SVG and PNG files."""

import base64
import hashlib
from functools import cache
from importlib import util
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from medray.errors import MedrayError
from medray.reports import behavior, confidence, provenance, ranking, summary, training
from medray.reports.blocks import Report
from medray.reports.study_data import StudyData
from medray.reports.svg import page_css
from medray.storage import checkpoint, files

REPORT = "report.html"  # in the run's folder
# Opens the collapsed parts in print, where they would be missing.
_SCRIPT = (
    "addEventListener('beforeprint',()=>"
    "document.querySelectorAll('details').forEach(part=>part.open=true))"
)
_HASH = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
_POLICY = (
    f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{_HASH}'; "
    "base-uri 'none'; form-action 'none'"
)


def compose(data: StudyData) -> Report:
    sections = [
        summary.study(data),
        ranking.leaderboard(data),
        ranking.against(data),
        summary.samples(data),
        behavior.mistakes(data),
        confidence.section(data),
        behavior.slices(data),
        training.curves(data),
        training.hyperparameters(data),
        training.cost(data),
        provenance.audit(data),
        provenance.repeat(data),
    ]
    return Report(
        title=data.board.study,
        day=data.day,
        headline=summary.headline(data),
        findings=summary.findings(data),
        facts=summary.facts(data),
        sections=[section for section in sections if section],
        footer=(f"medray {checkpoint.versions()['medray']}", data.run),
    )


def render(report: Report) -> str:
    """Render a report as HTML. The template escapes all text, and the charts escape theirs."""
    return _template().render(report=report, css=page_css(), script=_SCRIPT, policy=_POLICY) + "\n"


def write(report: Report, path: Path) -> Path:
    files.write(path, render(report).encode())
    return path


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("medray", "reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["svg"] = lambda drawing: Markup(drawing.svg())
    return environment.get_template("report.html")


_ZOOM = 2.0
_EXTRA = (
    "PNG charts need the extra `plots` (the SVG charts are written); pip install 'medray[plots]'"
)
_FONTS = (
    "PNG charts need a font, which this machine lacks (the SVG charts are written); apt-get "
    "install fonts-dejavu-core"
)
_WORD = (
    '<svg xmlns="http://www.w3.org/2000/svg" width="20" height="20"><text y="15">{}</text></svg>'
)


def write_images(report: Report, folder: Path) -> list[Path]:
    paths = []
    has_png = no_png() == ""
    for chart in report.charts():
        svg = chart.drawing.svg(standalone=True)
        name = "".join(char if char.isalnum() or char in "._-" else "-" for char in chart.name)
        images = {".svg": svg.encode(), **({".png": png(svg)} if has_png else {})}
        for suffix, content in images.items():
            paths.append(folder / f"{name}{suffix}")
            files.write(paths[-1], content)
    return paths


def no_png() -> str:
    """Return the reason why this machine cannot write PNG, or an empty text."""
    if util.find_spec("resvg_py") is None:
        return _EXTRA
    return _FONTS if png(_WORD.format("m")) == png(_WORD.format("")) else ""


def png(svg: str) -> bytes:
    try:
        import resvg_py
    except ImportError:
        raise MedrayError(_EXTRA) from None
    return bytes(
        resvg_py.svg_to_bytes(
            svg_string=svg, zoom=_ZOOM, font_family="DejaVu Sans", sans_serif_family="DejaVu Sans"
        )
    )
