import sys
from types import ModuleType
from xml.etree import ElementTree

import pytest

from medray.errors import MedrayError
from medray.reports import html_report
from medray.reports.charts import (
    Curve,
    ReliabilityPoint,
    Spot,
    cells,
    lines,
    reliability,
    scatter,
)
from medray.reports.interval_chart import Bar, intervals
from medray.reports.scale import Scale, log_span, span, tick
from medray.reports.svg import DARK, LIGHT, Drawing, shorten, text_width

SVG = "{http://www.w3.org/2000/svg}"


def luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, two: str) -> float:
    high, low = sorted((luminance(one), luminance(two)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", [LIGHT, DARK])
def test_words_and_marks_stand_out_from_the_paper(scheme: dict[str, str]) -> None:
    for name in ("ink", "muted", "accent", "bad"):
        assert contrast(scheme[name], scheme["paper"]) >= 4.5, name
    for name in (name for name in scheme if name[1:].isdigit()):
        assert contrast(scheme[name], scheme["paper"]) >= 3, name


def test_a_scale_puts_its_ends_at_the_ends_and_ticks_inside() -> None:
    for scale in (
        Scale(0.3, 0.97, 10, 200),
        Scale(1e-4, 3e-2, 10, 200, is_log=True),
        Scale(1.5e-3, 2.2e-3, 10, 200, is_log=True),
    ):
        assert (scale(scale.low), scale(scale.high)) == (pytest.approx(10), pytest.approx(200))
        ticks = scale.ticks()
        assert 2 <= len(ticks) <= 7
        assert all(scale.low * 0.99 <= value <= scale.high * 1.01 for value in ticks)


def test_spans_of_equal_values_have_a_length() -> None:
    assert span([0.5, 0.5])[0] < 0.5 < span([0.5, 0.5])[1]
    assert span([0.0])[0] < 0 < span([0.0])[1]
    assert log_span([3.0])[0] < 3 < log_span([3.0])[1]
    assert span([0.5, 0.99], high=1.0)[1] <= 1


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0005, "5e-4"), (0.25, "0.25"), (1500, "1,500"), (2e7, "20 M"), (7e9, "7 G"), (0, "0")],
)
def test_ticks_are_short(value: float, text: str) -> None:
    assert tick(value) == text


def test_a_name_that_does_not_fit_keeps_both_ends() -> None:
    cut = shorten("a-very-long-name-of-a-model-007", 100)
    assert text_width(cut) <= 112
    assert cut.startswith("a-v")
    assert cut.endswith("007")


def test_every_kind_of_chart_is_svg_that_stands_alone_inside_its_own_frame() -> None:
    bins = [ReliabilityPoint(0.95, 0.9, 100, 0.9, 1.0), ReliabilityPoint(0.55, 0.4, 3, 0.5, 0.6)]
    bars = [Bar("<one>", 0.9, 0.8, 0.95, other=0.91, text="0.9"), Bar("two", None)]
    drawings = [
        *(intervals("t", "s", bars, width=width) for width in (328, 820)),
        lines(
            "t",
            "s",
            [Curve("c", ((1.0, 0.5), (2.0, 0.7)), "c", is_strong=True), Curve("d", ((1.0, 0.4),))],
            x_label="epoch",
        ),
        scatter("t", "s", [Spot("8", 0.5, "x"), Spot("16", 0.6, "y", 3)], x_label="rank"),
        scatter(
            "t",
            "s",
            [Spot(0.0, 0.5, "x"), Spot(1.0, 0.6, "y", None)],
            x_label="zero has no logarithm",
            log=True,
        ),
        cells("t", "s", ["a", "b"], [[3, 0], [0, 0]]),
        cells("t", "s", [str(at) for at in range(12)], [[at] * 12 for at in range(12)]),
        reliability("t", "s", bins),
    ]
    for drawing in drawings:
        root = ElementTree.fromstring(drawing.svg(standalone=True))
        assert root.tag == f"{SVG}svg"
        assert "var(" not in drawing.svg(standalone=True)
        left, top, width, height = map(float, (root.get("viewBox") or "").split())
        for mark in root.iter():
            for name, low, size in (
                ("x", left, width),
                ("cx", left, width),
                ("x2", left, width),
                ("y", top, height),
                ("cy", top, height),
            ):
                if (place := mark.get(name)) is not None:
                    assert low <= float(place) <= low + size, f"{mark.tag} {mark.attrib}"


def test_what_xml_cannot_hold_is_left_out() -> None:
    drawing = Drawing("a\x00b\ud800", "\x1b", 10, 10)
    drawing.text((0, 5), "x\x07y")
    assert "".join(ElementTree.fromstring(drawing.svg(standalone=True)).itertext()).endswith("xy")


def test_png_without_its_extra_is_one_clear_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(MedrayError, match=r"medray\[plots\]"):
        html_report.png("<svg/>")


def test_png_without_a_font_is_an_error_instead_of_a_chart_without_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    blind = ModuleType("resvg_py")
    blind.__spec__ = sys.modules["json"].__spec__
    blind.svg_to_bytes = lambda **_: b"no words"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "resvg_py", blind)
    assert "need a font" in html_report.no_png()


def test_png_is_drawn_where_its_extra_is_installed() -> None:
    pytest.importorskip("resvg_py", reason="the extra `plots` is not installed")
    drawing = Drawing("t", "s", 40, 20)
    drawing.box((0, 0), 40, 20, "fill s0")
    assert html_report.png(drawing.svg(standalone=True)).startswith(b"\x89PNG")
