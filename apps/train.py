"""`sparknet train` as a file, which is what spark-submit takes: spark-submit apps/train.py CONFIG [options]."""

import sys

from sparknet.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
