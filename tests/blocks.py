"""`python tests/blocks.py [PAGE…]`: run the marked blocks of docs as they stand, from the
repository's root, after README's: they use the run and the release of the quickstart.

A comment above a block of shell or Python says how it is checked: `ci: run`, `ci: serve RELEASE`
(while `medray serve` answers), `ci: slow` (a slow test runs it), or `needs: …` for what CI does not
have. Of those, tests/test_docs.py still checks commands and options."""

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
NEEDS = {
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
    r"(?:^<!-- ((?:ci|needs): [^>]*?) -->\n)?^```(bash|python)\n(.*?)^```", re.DOTALL | re.MULTILINE
)


@dataclass(frozen=True)
class Block:
    page: Path
    mark: str  # empty where a block has none
    language: str
    code: str

    @property
    def is_known(self) -> bool:
        kind, _, value = self.mark.partition(": ")
        if kind == "needs":
            return set(value.split(", ")) <= NEEDS
        return kind == "ci" and (value in ("run", "slow") or bool(self.served))

    @property
    def served(self) -> str:
        """The release that answers while the block runs."""
        return self.mark.removeprefix("ci: serve ") if self.mark.startswith("ci: serve ") else ""


def pages() -> list[Path]:
    folders = [ROOT / "docs" / name for name in ("tutorials", "guides")]
    return sorted([*(ROOT / "docs").glob("*.md"), *(p for at in folders for p in at.glob("*.md"))])


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [Block(page, mark, language, code) for mark, language, code in BLOCK.findall(text)]


def run(block: Block, folder: Path = ROOT) -> int:
    """Run a block in a folder that has the repository's files and return its exit status."""
    with serve(block.served):
        code = f". .venv/bin/activate\n{block.code}" if block.language == "bash" else block.code
        command = (
            ["bash", "-euo", "pipefail", "-c", code]
            if block.language == "bash"
            else [sys.executable, "-c", code]
        )
        return subprocess.run(command, cwd=folder).returncode


@contextmanager
def serve(release: str) -> Iterator[None]:
    if not release:
        yield
        return
    command = [sys.executable, "-m", "medray.cli", "serve", release]
    with subprocess.Popen(command, cwd=ROOT) as process:
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
        if not block.mark.startswith("ci:") or block.mark == "ci: slow":
            continue
        print(f"-- {block.page.relative_to(ROOT)}\n{block.code}", flush=True)
        start = time.monotonic()
        status = run(block)
        print(f"-- exit status {status} after {time.monotonic() - start:.0f} s", flush=True)
        if status:
            return status
        num_blocks += 1
    print(f"{num_blocks} blocks ran")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
