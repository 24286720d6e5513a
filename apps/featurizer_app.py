"""The original's FeaturizerApp: spark-submit apps/featurizer_app.py N."""

import sys

from sparknet.cli.apps import run_featurizer

if __name__ == "__main__":
    sys.exit(run_featurizer(__file__))
