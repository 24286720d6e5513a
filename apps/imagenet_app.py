"""The original's ImageNetApp: spark-submit apps/imagenet_app.py N BUCKET."""

import sys

from sparknet.cli.apps import App, run_app

APP = App(
    file=__file__,
    about="Train CaffeNet on ImageNet's tar files, as the first SparkNet did.",
    config="imagenet_caffenet.toml",
    rounds=1000,
)

if __name__ == "__main__":
    sys.exit(run_app(APP))
