"""`ray job submit --working-dir . -- python jobs/study.py STUDY.yaml key=value`: runs a study. The
exit status is not zero if it fails."""

import sys

from medray.cli import main

if __name__ == "__main__":
    sys.exit(main(["study", *sys.argv[1:]]))
