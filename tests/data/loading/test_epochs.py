"""Shards, order and loader together: an epoch is every row exactly once, wherever a worker stops and goes on."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from encoded import encoded_table
from formats import make_table
from sparknet.data.loading.loader import Loader
from sparknet.data.loading.sampling_order import Cursor, Order
from sparknet.data.loading.transform import Normalise

KINDS = {
    "bytes": lambda directory, sizes: make_table(directory, sizes, shape=(3, 2, 3)),
    "large rows": lambda directory, sizes: make_table(directory, sizes, shape=(3, 40, 40)),
    "floats": lambda directory, sizes: make_table(directory, sizes, shape=(5,), dtype="float32"),
    "encoded": lambda directory, sizes: encoded_table(directory, sizes, threads=2),
}


def read(table, order, *, batch_size, cursor, rows):
    """The next `rows` rows behind a cursor as (image's bytes, label), and the cursor of the last whole batch.

    The last batch goes on into the next epoch; what is beyond `rows` of it is left out.
    """
    found, at = [], cursor
    with Loader(
        table,
        order,
        batch_size=batch_size,
        cursor=cursor,
        preprocess={"image": Normalise(mean=None, scale=1.0)},
    ) as loader:
        while len(found) < rows:
            batch = next(loader)
            found += [
                (image.tobytes(), int(label))
                for image, label in zip(batch.columns["image"], batch.columns["label"], strict=True)
            ]
            if len(found) <= rows:
                at = batch.cursor
    return found[:rows], at


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_every_row_exactly_once_an_epoch_also_after_resuming(tmp_path_factory, kind, data):
    sizes = data.draw(st.lists(st.integers(1, 30), min_size=1, max_size=5), label="rows of the shards")
    slots = data.draw(st.integers(1, min(4, sum(sizes))), label="workers")
    batch_size = data.draw(st.integers(1, 12), label="batch size")
    seed, epoch = data.draw(st.integers(0, 9)), data.draw(st.integers(0, 3))
    table, images, labels = KINDS[kind](tmp_path_factory.mktemp("table"), sizes)
    pairs = zip(images, labels, strict=True)
    expected = Counter((image.astype(np.float32).tobytes(), int(label)) for image, label in pairs)
    delivered, parts = Counter(), []
    with table:
        for slot in range(slots):
            order = Order(seed, table.shard_rows, slots, slot)
            parts.append(order.rows(epoch, 0, len(order)).tolist())
            found = in_two_goes(table, order, epoch, batch_size=batch_size, data=data)
            again, _ = read(table, order, batch_size=batch_size, cursor=Cursor(epoch=epoch), rows=len(order))
            assert found == again
            delivered.update(found)
    assert delivered == expected
    assert sorted(row for part in parts for row in part) == list(range(sum(sizes)))


def in_two_goes(table, order, epoch, *, batch_size, data):
    """A slot's epoch, left behind any of its batches and taken up again by another loader."""
    start = Cursor(epoch=epoch)
    batches = len(order) // batch_size
    stop = batch_size * data.draw(st.integers(0, batches), label="rows before the stop")
    found, cursor = read(table, order, batch_size=batch_size, cursor=start, rows=stop)
    assert cursor == start.advance(stop, rows_per_epoch=len(order))
    rest, _ = read(table, order, batch_size=batch_size, cursor=cursor, rows=len(order) - stop)
    return found + rest
