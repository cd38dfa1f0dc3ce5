"""Notebooks of the docs run as they stand, and show what they print."""

from pathlib import Path

import nbformat
import notebooks
import pytest

PATHS = sorted(notebooks.FOLDER.glob("*.ipynb"))


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_with_its_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert any(output.output_type in ("stream", "execute_result") for output in outputs)
    assert all(output.output_type != "error" for output in outputs)


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, request: pytest.FixtureRequest) -> None:
    if path.stem.startswith("pubmedqa"):
        request.getfixturevalue("real_data")  # skips where there is none
    before = nbformat.read(path, as_version=4)
    after = notebooks.run(path)
    assert [cell.source for cell in after.cells] == [cell.source for cell in before.cells]
