"""`ray job submit --working-dir . -- python jobs/evaluate.py cancer@best STUDY.yaml`:
evaluates a release on the data of a study."""

import sys

from medray.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
