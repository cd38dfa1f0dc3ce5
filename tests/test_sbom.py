"""The software bill of materials names the installed packages."""

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_sbom_lists_every_installed_package_with_its_version() -> None:
    subprocess.run(
        ["make", "-s", "sbom", f"PYTHON={sys.executable}"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    sbom = json.loads((ROOT / "build" / "sbom.json").read_text(encoding="utf-8"))
    assert sbom["bomFormat"] == "CycloneDX"
    assert sbom["metadata"]["component"]["name"] == "medray"
    components = {
        (component["name"].lower(), component["version"]) for component in sbom["components"]
    }
    # In a process of its own: Ray puts packages that it brings along on the path.
    names = (
        "from importlib import metadata; print(*(f\"{p.metadata['Name'].lower()}=={p.version}\" "
        "for p in metadata.distributions()))"
    )
    output = subprocess.run(
        [sys.executable, "-c", names], check=True, capture_output=True, text=True
    ).stdout
    packages = {tuple(package.split("==")) for package in output.split()}
    assert packages - components <= {package for package in packages if package[0] == "medray"}
    assert ("ray", metadata.version("ray")) in components
