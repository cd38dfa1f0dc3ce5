"""Points an alias at a version from a job, and waits until every replica serves it: python
jobs/promote.py cancer@7 best [--url URL]."""

import sys

from medray.cli import main

if __name__ == "__main__":
    sys.exit(main(["promote", *sys.argv[1:]]))
