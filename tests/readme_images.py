"""`python tests/readme_images.py [RUN]`: write README's badges, and its leaderboard from a run.

RUN is a finished run of jobs/studies/quickstart.yaml; the picture is a chart of its report."""

import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"
CHART = "leaderboard-test.svg"


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


def main(arguments: list[str]) -> int:
    IMAGES.mkdir(parents=True, exist_ok=True)
    for name, text in badges().items():
        (IMAGES / name).write_text(text, encoding="utf-8")
    for run in arguments:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "medray.cli", "report", run, "--plots", folder]
            subprocess.run(command, check=True, cwd=ROOT)
            shutil.copyfile(Path(folder) / CHART, IMAGES / "leaderboard.svg")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
