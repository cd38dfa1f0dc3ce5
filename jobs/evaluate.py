"""`ray job submit --working-dir . -- python jobs/evaluate.py cancer@best STUDY.yaml`: judge a
release on a study's data."""

import sys

from medray.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
