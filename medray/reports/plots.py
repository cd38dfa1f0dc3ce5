"""Every chart of a report as a file: SVG as it is, PNG where a renderer of SVG is installed (the extra `plots`)."""

from importlib import util
from pathlib import Path

from medray import storage
from medray.errors import MedrayError
from medray.reports.blocks import Report

_ZOOM = 2.0
_EXTRA = "PNG needs the extra `plots`: pip install 'medray[plots]'; the charts are there as SVG"
_FONTS = "PNG needs a font: this machine has none, such as fonts-dejavu-core of Debian; the charts are there as SVG"
_WORD = '<svg xmlns="http://www.w3.org/2000/svg" width="20" height="20"><text y="15">{}</text></svg>'


def write_images(report: Report, folder: Path) -> list[Path]:
    written = []
    is_drawn = no_png() == ""
    for chart in report.charts():
        svg = chart.drawing.svg(standalone=True)
        name = "".join(char if char.isalnum() or char in "._-" else "-" for char in chart.name)
        files = {".svg": svg.encode(), **({".png": png(svg)} if is_drawn else {})}
        for suffix, content in files.items():
            written.append(folder / f"{name}{suffix}")
            storage.write(written[-1], content)
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
    return bytes(resvg_py.svg_to_bytes(svg_string=svg, zoom=_ZOOM, font_family="DejaVu Sans", sans_serif_family="DejaVu Sans"))
