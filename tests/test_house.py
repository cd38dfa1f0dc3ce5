"""The bounds of the package: sizes and counts that `make house` prints. A lower count is a reason
to lower its bound."""

import ast
from pathlib import Path

import house
import pytest

BOUNDS = {
    "modules": 276,
    "single modules at the top": 3,
    "layers": 11,
    "files that compute an F1": 1,
    "lines of the largest file": 359,
    "lines of the largest function": 94,
    "names that are participles": 0,
}
CONTRACTS = """
[[tool.importlinter.contracts]]
name = "down"
type = "layers"
layers = ["medray.high", "medray.left | medray.right", "medray.low"]
[[tool.importlinter.contracts]]
name = "no torch"
type = "forbidden"
source_modules = ["medray.low"]
forbidden_modules = ["torch"]
"""


@pytest.fixture(scope="module")
def today() -> house.House:
    return house.House(house.ROOT)


def checkout(folder: Path, **modules: str) -> house.House:
    """An invented package; `__` in a name stands for a folder."""
    (folder / "pyproject.toml").write_text(CONTRACTS)
    for name, text in {"__init__": "", **modules}.items():
        path = (
            folder.joinpath("medray", *name.split("__"))
            if name != "__init__"
            else folder / "medray" / "__init__"
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".py").write_text(text)
    return house.House(folder)


def test_the_shape_stays_within_its_bounds(today: house.House) -> None:
    figures = {
        "modules": today.num_modules,
        "single modules at the top": len(today.single),
        "layers": len(today.layers),
        "files that compute an F1": len(today.f1_files),
        "lines of the largest file": max(module.num_lines for module in today.modules.values()),
        "lines of the largest function": max(
            length for module in today.modules.values() for length, _ in module.functions
        ),
        "names that are participles": today.participles.total(),
    }
    assert {
        what: (figure, BOUNDS[what]) for what, figure in figures.items() if figure > BOUNDS[what]
    } == {}


def test_no_import_goes_round_or_up(today: house.House) -> None:
    assert today.circles == []
    assert today.circles_of_parts == []
    assert today.upward == []


def test_the_table_of_layers_is_that_of_pyproject(today: house.House) -> None:
    page = (house.ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert house.with_table(page, today) == page
    assert "| 1 | `errors` |" in page


def test_circles_and_imports_that_go_up_are_seen_inside_functions_and_not_for_type_checkers(
    tmp_path: Path,
) -> None:
    package = checkout(
        tmp_path,
        high="",
        left="def late() -> None:\n    from medray import right, high\n",
        right=(
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from medray import "
            "high\nfrom .low import name\n"
        ),
        low="def later() -> None:\n    import medray.left\n",
    )
    assert package.circles == [["medray.left", "medray.low", "medray.right"]]
    assert package.circles_of_parts == [["left", "low", "right"]]
    assert package.upward == [
        "medray.left -> medray.high",
        "medray.left -> medray.right",
        "medray.low -> medray.left",
    ]


@pytest.mark.parametrize(
    "formula",
    [
        "2 * hits / (true + predicted)",
        "2 * p * r / (p + r)",
        "ratio(2 * hits.sum(), whole)",
        "np.divide(np.multiply(2, hits), whole)",
        "f1_score(a, b)",
    ],
)
def test_an_f1_is_recognized(formula: str) -> None:
    assert house.computes_f1(ast.parse(f"figure = {formula}"))
    assert house.computes_f1(
        ast.parse("both = 2 * (rows * answers).sum(axis=1)\nfigure = both[rows] / either")
    )


@pytest.mark.parametrize(
    "other",
    [
        "2 * width / 3",
        "blocks * size * 2 / whole",
        "hits / whole",
        "ratio(hits, 2 * whole)",
        "read_f1(metrics)",
    ],
)
def test_other_arithmetic_is_no_f1(other: str) -> None:
    assert not house.computes_f1(ast.parse(f"figure = {other}"))


def test_every_place_that_binds_a_name_counts(tmp_path: Path) -> None:
    text = (
        "import os as made\nclass Told:\n    held: int\ndef said(asked, *given, kept=1):\n    for "
        "begun in asked:\n        asked.shown = found = begun\n"
    )
    counts = checkout(tmp_path, left__built=text).participles
    assert set(counts) == {
        "built",
        "made",
        "Told",
        "held",
        "said",
        "asked",
        "given",
        "kept",
        "begun",
        "shown",
        "found",
    }


def test_lines_are_counted_at_a_hundred_columns() -> None:
    assert house.at_columns(["", "x" * 100, "x" * 101, "x" * 301]) == 1 + 1 + 2 + 4
