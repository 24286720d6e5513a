"""Rows that stand for passes of a net that makes its own."""

import numpy as np
import pytest

from sparknet.config import Data
from sparknet.data.sources import passes
from sparknet.data.sources.files import Location
from sparknet.data.sources.opening import open_sources
from sparknet.errors import ConfigError, DataError


def test_a_row_is_the_number_of_a_pass() -> None:
    opened = passes.open_source(Location(path=""))
    (part,) = opened.partitions
    rows = np.concatenate([batch.column("pass").to_numpy() for batch in passes.read(part)])
    np.testing.assert_array_equal(rows, np.arange(1 << 16))


@pytest.mark.parametrize("where", [Location(path="here"), Location(path="", split="test")])
def test_there_are_no_files(where: Location) -> None:
    with pytest.raises(DataError, match="the net's own layers read its rows"):
        passes.open_source(where)


def test_nothing_need_be_held_out_of_them() -> None:
    assert open_sources(Data(source="net", inputs=("pass",), targets=("pass",))).train.format.reader is passes
    with pytest.raises(ConfigError, match="exactly one must be given"):
        Data(source="digits")
    with pytest.raises(ConfigError, match="exactly one must be given"):
        Data(source="net", validation_fraction=0.5, validation_path="there")
