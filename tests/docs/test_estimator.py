"""docs/estimator.md: its blocks run one after the other, as a reader types them."""

import re

import pytest

from digits import open_test_session
from places import REPOSITORY

pytestmark = pytest.mark.spark


def test_every_block_runs(tmp_path):
    text = (REPOSITORY / "docs" / "estimator.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) == 7
    spark = open_test_session("local[2,4]")
    # A name that nothing can import, as a notebook's.
    reader = {
        "__name__": "a_reader",
        "spark": spark,
        "run_dir": str(tmp_path / "run"),
        "model_dir": str(tmp_path / "model"),
    }
    try:
        for number, block in enumerate(blocks):
            exec(compile(block, f"estimator.md block {number}", "exec"), reader)
    finally:
        spark.stop()
    assert reader["accuracy"] > 0.9
    assert reader["done"].result["accuracy"] > 0.5
    assert (tmp_path / "model" / "model" / "weights.safetensors").is_file()
