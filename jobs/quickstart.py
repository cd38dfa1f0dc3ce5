"""`make quickstart`: a study on the synthetic sample, its winner served, three requests answered.
KEEP=1 leaves it up until Ctrl-C."""

import os
import sys
from pathlib import Path

from medray.cli import main
from medray.runtime import cluster

STUDY = "jobs/studies/quickstart.yaml"
TEXTS = (
    (
        "We studied 60 patients with a median age of 58 years. Histology showed an invasive "
        "carcinoma with nodal metastasis."
    ),
    (
        "We studied 60 patients with a median age of 58 years. Inflammation subsided with "
        "steroids, and blood pressure returned to normal."
    ),
    "Radiotherapy reduced local relapse of adenocarcinoma after a median follow-up of 4 years.",
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
