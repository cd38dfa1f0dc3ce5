"""`ray job submit --working-dir . -- python jobs/predict.py cancer@best --input s3://… --output
s3://…`: predicts a file or folder of texts."""

import sys

from medray.cli import main

if __name__ == "__main__":
    sys.exit(main(["predict", *sys.argv[1:]]))
