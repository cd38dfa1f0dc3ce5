"""`ray job submit --working-dir . -- python jobs/publish.py runs/cancer cancer --alias best`:
publish a study's winner."""

import sys

from medray.cli import main

if __name__ == "__main__":
    sys.exit(main(["publish", *sys.argv[1:]]))
