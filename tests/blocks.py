"""`python tests/blocks.py [PAGE…]`: run the marked blocks of README and docs as they stand, from
the repository's root. README is first: the docs use the run and the release of its quickstart.

A comment above a block of shell or Python says how it is checked: `ci: run`, `ci: serve RELEASE`
(while `medray serve` answers), `ci: slow` or `ci: slow, serve RELEASE` (a slow test runs it), or
`needs: …` for what CI does not have. Of those, tests/test_docs.py still checks commands and
options.

A block of text right below a block shows parts of its output: each line must be in the output, in
that order. Numbers may differ, and `…` stands for any text."""

import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
NEEDS = {
    "a C++ compiler",
    "a bucket",
    "a cloud",
    "a cluster",
    "a GPU",
    "a release of yours",
    "Apptainer",
    "data of yours",
    "Docker",
    "Kubernetes",
    "Slurm",
    "the network",
    "vLLM",
}
BLOCK = re.compile(
    r"(?:^<!-- ((?:ci|needs): [^>]*?) -->\n)?^```(bash|python)\n(.*?)^```\n"
    r"(?:\n```text\n(.*?)^```$)?",
    re.DOTALL | re.MULTILINE,
)
NUMBER = re.compile(r"\d[\d,.]*")


@dataclass(frozen=True)
class Block:
    page: Path
    mark: str  # empty where a block has none
    language: str
    code: str
    excerpt: str  # of its output

    @property
    def is_known(self) -> bool:
        kind, _, value = self.mark.partition(": ")
        if kind == "needs":
            return set(value.split(", ")) <= NEEDS
        return kind == "ci" and (value in ("run", "slow") or bool(self.served))

    @property
    def is_slow(self) -> bool:
        return self.mark.startswith("ci: slow")

    @property
    def served(self) -> str:
        """The release that answers while the block runs."""
        match = re.fullmatch("ci: (?:slow, )?serve (.+)", self.mark)
        return match[1] if match else ""


def pages() -> list[Path]:
    folders = [ROOT / "docs" / name for name in ("tutorials", "guides")]
    docs = sorted([*(ROOT / "docs").glob("*.md"), *(p for at in folders for p in at.glob("*.md"))])
    return [README, *docs]


def blocks(page: Path) -> list[Block]:
    return [Block(page, *groups) for groups in BLOCK.findall(page.read_text(encoding="utf-8"))]


def failure(block: Block, folder: Path = ROOT) -> str | None:
    """Run a block in a folder that has the repository's files and return what went wrong."""
    start = time.monotonic()
    with serve(block.served, folder):
        status, output = run(command(block), folder)
    print(f"-- exit status {status} after {time.monotonic() - start:.0f} s", flush=True)
    if status:
        return f"exit status {status}"
    line = first_difference(block.excerpt, output)
    return line and f"{block.page.name} shows a line that the output does not have: {line}"


def command(block: Block) -> list[str]:
    if block.language == "python":
        return [sys.executable, "-c", block.code]
    # README's first block makes the environment; the docs take it for granted.
    before = "" if block.page == README else ". .venv/bin/activate\n"
    return ["bash", "-euo", "pipefail", "-c", before + block.code]


def run(command: Sequence[str], folder: Path) -> tuple[int, list[str]]:
    """Run a command, print its output, and return its exit status and the lines of its output."""
    lines = []
    with subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line.rstrip("\n"))
    return process.returncode, lines


def first_difference(excerpt: str, output: Sequence[str]) -> str | None:
    """Return the first line that a page shows and the rest of the output does not have."""
    lines = iter(output)
    for line in filter(None, excerpt.splitlines()):
        if not any(pattern(line).fullmatch(candidate) for candidate in lines):
            return line
    return None


def pattern(line: str) -> re.Pattern[str]:
    parts = [
        r"\d[\d,.]*".join(re.escape(text) for text in NUMBER.split(part))
        for part in line.strip().split("…")
    ]
    return re.compile(r"\s*" + ".*".join(parts) + r"\s*")


@contextmanager
def serve(release: str, folder: Path) -> Iterator[None]:
    if not release:
        yield
        return
    command = [sys.executable, "-m", "medray.cli", "serve", release]
    with subprocess.Popen(command, cwd=folder) as process:
        try:
            wait_until_served(process)
            yield
        finally:
            process.terminate()
            process.wait(60)


def wait_until_served(process: "subprocess.Popen[bytes]") -> None:
    end = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < end:
        try:
            with urllib.request.urlopen("http://127.0.0.1:8000/healthz", timeout=5) as response:
                if b'"ok"' in response.read():
                    return
        except OSError:
            pass
        time.sleep(1)
    raise SystemExit("medray serve does not answer")


def main(arguments: Sequence[str]) -> int:
    paths = [Path(word).resolve() for word in arguments] or pages()
    num_blocks = 0
    for block in (block for page in paths for block in blocks(page)):
        if not block.mark.startswith("ci:") or block.is_slow:
            continue
        print(f"-- {block.page.relative_to(ROOT)}\n{block.code}", flush=True)
        if reason := failure(block):
            print(reason)
            return 1
        num_blocks += 1
    print(f"{num_blocks} blocks ran")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
