"""Notebooks of the docs: `python tests/notebooks.py [NAME ...]` runs them and stores what they
print."""

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import nbclient
import nbformat

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "notebooks"
TIMEOUT = 900  # seconds per cell


def run(path: Path) -> nbformat.NotebookNode:
    """Run a notebook from the top of the repository with this Python, and return it with its
    outputs. An error of a cell raises `CellExecutionError`."""
    notebook = nbformat.read(path, as_version=4)
    commands = str(Path(sys.executable).parent)
    os.environ["PATH"] = commands + os.pathsep + os.environ["PATH"]
    client = nbclient.NotebookClient(
        notebook, timeout=TIMEOUT, resources={"metadata": {"path": str(ROOT)}}
    )
    client.create_kernel_manager().transport = "ipc"  # no port
    client.execute()
    return notebook


def save(path: Path, notebook: nbformat.NotebookNode) -> None:
    """Write a notebook without metadata, messages on standard error, and this run's folder."""
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type != "code":
            continue
        cell.outputs = [
            output
            for output in cell.outputs
            if output.get("name") != "stderr" and output.get("text", "…").strip()
        ]
        for output in cell.outputs:
            if "text" in output:
                output["text"] = re.sub(r"/\S*/(medray-notebook)-\w+", r"/tmp/\1", output["text"])
    notebook.metadata.language_info = {"name": "python"}
    nbformat.write(notebook, path)


def main(arguments: Sequence[str]) -> int:
    paths = [FOLDER / f"{name}.ipynb" for name in arguments] or sorted(FOLDER.glob("*.ipynb"))
    for path in paths:
        save(path, run(path))
        print(path.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
