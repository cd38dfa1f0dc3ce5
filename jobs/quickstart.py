"""`make quickstart`: a study on the synthetic sample, its winner served, three requests answered. KEEP=1 leaves it up until Ctrl-C."""

import os
import sys
from pathlib import Path

from medray import runtime
from medray.cli import main

STUDY = "jobs/studies/quickstart.yaml"
TEXTS = (
    "Histology of the resected specimen showed an invasive carcinoma with nodal metastasis.",
    "Blood pressure returned to normal within six weeks of treatment.",
    "Radiotherapy reduced local relapse of adenocarcinoma in 60 patients.",
)


def run() -> int:
    with runtime.start_cluster("single"):
        status = main(["study", STUDY, *sys.argv[1:]])
        if status:
            return status
        from medray.serving import local

        local.show("cancer@best", storage_path="runs", texts=TEXTS, keep=os.environ.get("KEEP") == "1")
    return 0


if __name__ == "__main__":
    os.chdir(Path(__file__).parent.parent)
    sys.exit(run())
