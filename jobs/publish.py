"""`ray job submit --working-dir . -- python jobs/publish.py runs/cancer cancer --alias best`:
publishes the winner of a study."""

import sys

from medray.cli import main

if __name__ == "__main__":
    sys.exit(main(["publish", *sys.argv[1:]]))
