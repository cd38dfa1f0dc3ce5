"""`ray job submit --working-dir . -- python jobs/study.py STUDY.yaml key=value`: run a study; not
zero where it failed."""

import sys

from medray.cli import main

if __name__ == "__main__":
    sys.exit(main(["study", *sys.argv[1:]]))
