"""A new format is one file and one row of the registry: named there, it trains."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

import toy_format
from digits import CONFIG, open_test_session
from sparknet.config import load_config
from sparknet.data.sources.registry import FORMATS, Format
from sparknet.spark.running.run import train
from sparknet.training.run_files.run_dir import RunDir

pytestmark = pytest.mark.spark


@pytest.fixture(scope="module")
def spark():
    # The tasks import the format as the driver does, by its module's name.
    beside = str(Path(toy_format.__file__).parent)
    session = open_test_session("local[2,4]", **{"spark.executorEnv.PYTHONPATH": beside})
    yield session
    session.stop()


def test_a_format_that_is_registered_in_one_place_trains(spark, tmp_path, monkeypatch):
    monkeypatch.setitem(FORMATS, "hex", Format(what="hexadecimal digits", reader=toy_format))
    digits = load_digits()
    images, labels = digits.images.astype(np.uint8)[:, np.newaxis], digits.target
    (tmp_path / "rows").mkdir()
    for number in range(2):
        toy_format.write(tmp_path / "rows" / f"{number}.hex", images[number::2], labels[number::2])
    settings = ["data.source='hex'", f"data.path='{tmp_path / 'rows'}'", "run.rounds=30"]
    config = load_config(CONFIG, settings)
    with RunDir.create(tmp_path / "run", config) as run_dir:
        result = train(config, run_dir, spark=spark)
    assert result.accuracy > 0.95
