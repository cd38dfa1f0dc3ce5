"""Runs a study on the synthetic notes, serves its winner and classifies three notes over HTTP.

This is `make quickstart`. With KEEP=1 the server stays up until Ctrl-C."""

import os
import sys
from pathlib import Path

from medray.cli import main
from medray.runtime import cluster

STUDY = "jobs/studies/quickstart.yaml"
TEXTS = (
    "58-year-old woman. Biopsy confirmed breast cancer and her mother had sarcoidosis.",
    "58-year-old woman. Biopsy confirmed sarcoidosis and her mother had breast cancer.",
    "71-year-old man. Cured of colon cancer in 2012. Now takes tablets for gout.",
)


def run() -> int:
    with cluster.start_cluster("single"):
        status = main(["study", STUDY, *sys.argv[1:]])
        if status:
            return status
        from medray.serving import app

        app.show(
            "cancer@best", storage_path="runs", texts=TEXTS, keep=os.environ.get("KEEP") == "1"
        )
    return 0


if __name__ == "__main__":
    os.chdir(Path(__file__).parent.parent)
    sys.exit(run())
