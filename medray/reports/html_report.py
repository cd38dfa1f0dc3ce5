"""A report as one HTML page that asks for nothing from anywhere: its sheet, its charts and its few
lines of script are inside it."""

import base64
import hashlib
from functools import cache
from importlib import util
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from medray.errors import MedrayError
from medray.reports import behaviour, provenance, summary, training
from medray.reports.blocks import Report
from medray.reports.study_data import StudyData
from medray.reports.svg import page_css
from medray.storage import checkpoint, files

REPORT = "report.html"  # in the run's folder
# Details are opened for the printer, which shows no closed ones.
_SCRIPT = (
    "addEventListener('beforeprint',()=>"
    "document.querySelectorAll('details').forEach(held=>held.open=true))"
)
_HASH = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
_POLICY = (
    f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{_HASH}'; "
    "base-uri 'none'; form-action 'none'"
)


def compose(data: StudyData) -> Report:
    sections = [
        summary.asked(data),
        summary.leaderboard(data),
        summary.against(data),
        summary.answers(data),
        behaviour.mistakes(data),
        behaviour.confidence(data),
        behaviour.slices(data),
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
        said=summary.said(data),
        facts=summary.facts(data),
        sections=[section for section in sections if section],
        footer=(f"medray {checkpoint.versions()['medray']}", data.run),
    )


def render(report: Report) -> str:
    """Everything but the charts is escaped by the template, and those escape themselves."""
    return _template().render(report=report, css=page_css(), script=_SCRIPT, policy=_POLICY) + "\n"


def write(report: Report, path: Path) -> Path:
    files.write(path, render(report).encode())
    return path


@cache
def _template() -> Template:
    made = Environment(
        loader=PackageLoader("medray", "reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["drawn"] = lambda drawing: Markup(drawing.svg())
    return made.get_template("report.html")


_ZOOM = 2.0
_EXTRA = "PNG needs the extra `plots`: pip install 'medray[plots]'; the charts are there as SVG"
_FONTS = (
    "PNG needs a font: this machine has none, such as fonts-dejavu-core of Debian; the charts are "
    "there as SVG"
)
_WORD = (
    '<svg xmlns="http://www.w3.org/2000/svg" width="20" height="20"><text y="15">{}</text></svg>'
)


def write_images(report: Report, folder: Path) -> list[Path]:
    written = []
    is_drawn = no_png() == ""
    for chart in report.charts():
        svg = chart.drawing.svg(standalone=True)
        name = "".join(char if char.isalnum() or char in "._-" else "-" for char in chart.name)
        images = {".svg": svg.encode(), **({".png": png(svg)} if is_drawn else {})}
        for suffix, content in images.items():
            written.append(folder / f"{name}{suffix}")
            files.write(written[-1], content)
    return written


def no_png() -> str:
    """Why there is no PNG here; nothing where there is."""
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
