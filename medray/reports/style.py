"""What a report looks like: colours for light and dark that the colour-blind can tell apart (after Okabe and Ito), and the sheets."""

from functools import cache
from importlib import resources

LIGHT = {
    "paper": "#ffffff",
    "raised": "#f6f7f9",
    "ink": "#16191d",
    "muted": "#59626d",
    "rule": "#d9dee4",
    "faint": "#c3cad3",
    "accent": "#0a5a9c",
    "bad": "#a8320a",
    "s0": "#0a67a8",
    "s1": "#c4510a",
    "s2": "#007a5a",
    "s3": "#9a4f86",
    "s4": "#8a6d00",
    "s5": "#2a8fc4",
}
DARK = {
    "paper": "#14171b",
    "raised": "#1d2126",
    "ink": "#e8ebee",
    "muted": "#a3adb8",
    "rule": "#32383f",
    "faint": "#4b545e",
    "accent": "#6db8f2",
    "bad": "#f59a76",
    "s0": "#5fb2ee",
    "s1": "#f0915a",
    "s2": "#3fc49c",
    "s3": "#dc9bcb",
    "s4": "#dcb83c",
    "s5": "#9ad4f5",
}
NUM_SERIES = sum(name[1:].isdigit() for name in LIGHT)
FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Liberation Sans", Arial, sans-serif'


@cache
def page_css() -> str:
    """The sheet of a page, its charts included: light, dark where the reader asks for it, and light again on paper."""
    light, dark = (";".join(f"--{name}:{value}" for name, value in colours.items()) for colours in (LIGHT, DARK))
    schemes = f":root{{{light}}}@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}"
    return f"{schemes}\n{_chart_css()}\n{_sheet('report.css')}".replace("var(--font)", FONT)


@cache
def standalone_css() -> str:
    """The sheet of a chart in a file of its own; literal colours, which every reader of SVG knows."""
    css = _chart_css().replace("svg ", "")
    for name, value in LIGHT.items():
        css = css.replace(f"var(--{name})", value)
    return css.replace("var(--font)", FONT)


def _chart_css() -> str:
    colours = "".join(
        f"svg .line.s{at}{{stroke:var(--s{at})}}svg .fill.s{at}{{fill:var(--s{at})}}svg .open.s{at}{{stroke:var(--s{at})}}svg text.s{at}{{fill:var(--s{at})}}"
        for at in range(NUM_SERIES)
    )
    return _sheet("chart.css") + colours


def _sheet(name: str) -> str:
    return resources.files("medray.reports").joinpath(name).read_text(encoding="utf-8")
