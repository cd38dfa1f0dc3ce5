"""Run README's commands as they stand, from the repository's root.

Every block of shell below a `ci: run` comment runs. A block of text right below it shows parts of
the output: each of its lines must be in the output, in that order. Numbers may differ, and `…`
stands for any text."""

import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"<!-- ci: run -->\n```bash\n(.*?)```\n(?:\n```text\n(.*?)```\n)?", re.DOTALL)
NUMBER = re.compile(r"\d[\d,.]*")


def pattern(line: str) -> re.Pattern[str]:
    parts = [
        r"\d[\d,.]*".join(re.escape(text) for text in NUMBER.split(part))
        for part in line.strip().split("…")
    ]
    return re.compile(r"\s*" + ".*".join(parts) + r"\s*")


def first_difference(excerpt: str, output: Sequence[str]) -> str | None:
    """Return the first line that README shows and the rest of the output does not have."""
    lines = iter(output)
    for line in filter(None, excerpt.splitlines()):
        if not any(pattern(line).fullmatch(candidate) for candidate in lines):
            return line
    return None


def run(block: str) -> tuple[int, list[str]]:
    """Run a block, print its output, and return its exit status and the lines of its output."""
    command = ["bash", "-euo", "pipefail", "-c", block]
    lines = []
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line.rstrip("\n"))
    return process.returncode, lines


def main() -> int:
    blocks = BLOCK.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    if not blocks:
        print("README.md has no block to run")
        return 1
    for block, excerpt in blocks:
        print(block, flush=True)
        start = time.monotonic()
        status, output = run(block)
        print(f"-- exit status {status} after {time.monotonic() - start:.0f} s", flush=True)
        if status:
            return status
        if line := first_difference(excerpt, output):
            print(f"README.md shows a line that the output does not have: {line}")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
