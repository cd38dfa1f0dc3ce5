"""Run the README's commands as they stand: every block of shell behind a `ci: run` comment, from
the repository's root."""

import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"<!-- ci: run -->\n```bash\n(.*?)```", re.DOTALL)


def main() -> int:
    blocks = BLOCK.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    if not blocks:
        print("README.md has no block to run")
        return 1
    for block in blocks:
        print(block, flush=True)
        start = time.monotonic()
        process = subprocess.run(["bash", "-euo", "pipefail", "-c", block], cwd=ROOT)
        print(
            f"-- exit status {process.returncode} after {time.monotonic() - start:.0f} s",
            flush=True,
        )
        if process.returncode:
            return process.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
