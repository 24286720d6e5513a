"""Images that keep their own sizes, from the reading to what is cut out of them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from encoded import png
from sparknet.config import encode
from sparknet.data.loading.loader import Loader
from sparknet.data.loading.row_random import places, row_draws
from sparknet.data.loading.sampling_order import Cursor, Order
from sparknet.data.loading.transform import Normalise
from sparknet.data.rows.column_plan import ColumnPlan
from sparknet.data.rows.columns import ImageForm
from sparknet.data.rows.own_size import SeveralSizes, is_packed, pack, packed_among, planes_of
from sparknet.data.rows.reading import ReadPlan, RowReader
from sparknet.data.shards.prepared import JoinedTable
from sparknet.data.shards.publish import several_sizes
from sparknet.data.shards.shard_table import Shard, ShardTable
from sparknet.data.shards.statistics import Statistics
from sparknet.data.shards.write_partition import PartitionPlan, PartitionReport, write_partition
from sparknet.errors import BadImage, DataError

SIZES = ((8, 9), (6, 12), (7, 7), (11, 6), (6, 6))
SIDE = 5
LABELS = ColumnPlan(name="label", number_shape=())
FILES = ColumnPlan(name="image", form=ImageForm(), own_size="yes")
PIXELS = ColumnPlan(name="image", shape=(3, *SIZES[0]), own_size="yes")


def picture(row: int) -> np.ndarray:
    """uint8 [3, height, width] of a size that goes round."""
    return np.random.default_rng(row).integers(0, 256, (3, *SIZES[row % len(SIZES)]), dtype=np.uint8)


def cell(plan: ColumnPlan, image: np.ndarray) -> bytes:
    """An image as its source gives it: a file, or pixels, of the first size without it."""
    if plan.form is not None:
        return png(image)
    return image.tobytes() if image.shape == plan.shape else pack(image)


def batch(plan: ColumnPlan, images: list[np.ndarray]) -> pa.RecordBatch:
    cells = pa.array([cell(plan, image) for image in images])
    return pa.record_batch([cells, pa.array(range(len(images)))], names=["c0", "c1"])


def prepared(directory: Path, plan: ColumnPlan, images: list[np.ndarray]) -> PartitionReport:
    rows = ReadPlan(columns=(plan, LABELS))
    task = PartitionPlan(directory=str(directory), rows=rows, fraction=0.0, seed=0, shard_bytes=700)
    report = write_partition(task, iter([batch(plan, images)]), partition=0)
    assert report is not None
    return report


def table_of(directory: Path, report: PartitionReport, cut: Normalise | None, *, threads: int = 1) -> ShardTable:
    shards = [Shard(path=shard.name, rows=shard.rows) for shard in report.shards]
    cuts = {} if cut is None else {"image": cut}
    return ShardTable(directory, shards, report.columns, threads=threads, cuts=cuts)


CENTRE = Normalise(mean=None, scale=1.0, crop=SIDE)
RANDOM = replace(CENTRE, cut="random", mirror=True)


@pytest.mark.parametrize("plan", [FILES, replace(FILES, keep="encoded"), PIXELS])
@pytest.mark.parametrize("threads", [1, 3])
def test_a_square_is_cut_out_of_each_by_itself(tmp_path: Path, plan: ColumnPlan, threads: int) -> None:
    images = [picture(row) for row in range(23)]
    report = prepared(tmp_path, plan, images)
    assert len(report.shards) > 1
    assert (report.columns[0].shape, report.columns[0].own_size) == ((3, 6, 6), True)
    assert report.columns[0].told == "image 3 x 6 x 6 or larger"
    rows = np.array([22, 0, 7, 7, 15])
    draws = row_draws(3, 1, rows)
    with table_of(tmp_path, report, RANDOM, threads=threads) as table:
        found = table.take(rows, draws)["image"]
    free = [(images[row].shape[1] - SIDE + 1, images[row].shape[2] - SIDE + 1) for row in rows]
    ys = [int(places(draws[at : at + 1, 0], high)[0]) for at, (high, _) in enumerate(free)]
    xs = [int(places(draws[at : at + 1, 1], wide)[0]) for at, (_, wide) in enumerate(free)]
    assert len({*zip(ys, xs, strict=True)}) > 1
    for at, row in enumerate(rows):
        expected = images[row][:, ys[at] : ys[at] + SIDE, xs[at] : xs[at] + SIDE]
        np.testing.assert_array_equal(found[at], expected)
    with table_of(tmp_path, report, CENTRE, threads=threads) as table:
        assert table.slice(2, 2)["image"].shape == (0, 3, SIDE, SIDE)
        for at, got in enumerate(table.slice(2, 21)["image"]):
            image = images[2 + at]
            y, x = (image.shape[1] - SIDE) // 2, (image.shape[2] - SIDE) // 2
            np.testing.assert_array_equal(got, image[:, y : y + SIDE, x : x + SIDE])


def test_a_slice_over_shards_gives_each_row_its_own_draws(tmp_path: Path) -> None:
    report = prepared(tmp_path, PIXELS, [picture(row) for row in range(23)])
    rows = np.arange(3, 20)
    with table_of(tmp_path, report, RANDOM) as table:
        draws = row_draws(0, 0, rows)
        np.testing.assert_array_equal(table.slice(3, 20, draws)["image"], table.take(rows, draws)["image"])


def test_a_row_is_cut_the_same_whoever_reads_it(tmp_path: Path) -> None:
    """By two workers, by one, and after a break: the place depends on seed, pass and row."""
    images = [picture(row) for row in range(20)]
    report = prepared(tmp_path, FILES, images)

    def seen(workers: int, start: int, passes: int) -> dict[tuple[int, int], bytes]:
        found: dict[tuple[int, int], bytes] = {}
        with table_of(tmp_path, report, RANDOM) as table:
            for slot in range(workers):
                order = Order(7, table.shard_rows, workers, slot)
                cursor = Cursor(epoch=start)
                with Loader(table, order, batch_size=1, cursor=cursor, preprocess={"image": RANDOM}) as loader:
                    for at in range(passes * len(order)):
                        columns = next(loader).columns
                        epoch = start + at // len(order)
                        found[epoch, int(columns["label"][0])] = columns["image"].tobytes()
        return found

    alone = seen(1, 0, 3)
    assert len(alone) == 60
    assert seen(2, 0, 3) == alone
    assert seen(1, 2, 1) == {key: value for key, value in alone.items() if key[0] == 2}
    assert any(alone[0, row] != alone[1, row] for row in range(20))


def test_tables_that_are_read_in_step_cut_their_own_columns(tmp_path: Path) -> None:
    images = [picture(row) for row in range(9)]
    report = prepared(tmp_path, PIXELS, images)
    rows = np.arange(2, 7)
    draws = row_draws(0, 0, rows)
    tables = [table_of(tmp_path, report, cut) for cut in (RANDOM, CENTRE)]
    joined = JoinedTable(tables, [{"image": "left", "label": "label"}, {"image": "right"}])
    for found in (joined.take(rows, draws), joined.slice(2, 7, draws)):
        np.testing.assert_array_equal(found["left"], tables[0].take(rows, draws)["image"])
        np.testing.assert_array_equal(found["right"], tables[1].take(rows)["image"])


@pytest.mark.parametrize("plan", [FILES, PIXELS])
def test_channels_are_measured_over_all_places(tmp_path: Path, plan: ColumnPlan) -> None:
    images = [picture(row) for row in range(12)]
    report = prepared(tmp_path, plan, images)
    sums = Statistics.load(tmp_path / report.sums, report.columns).sums["image"]
    flat = np.concatenate([image.reshape(3, -1) for image in images], axis=1).astype(np.float64)
    np.testing.assert_allclose(sums.channel_mean, flat.mean(1), rtol=1e-12)
    np.testing.assert_allclose(sums.channel_std, flat.std(1), rtol=1e-12)


@pytest.mark.parametrize("plan", [replace(FILES, own_size="if_needed"), replace(PIXELS, own_size="if_needed")])
def test_images_of_several_sizes_are_found_and_told(tmp_path: Path, plan: ColumnPlan) -> None:
    images = [picture(0), picture(5), picture(6)]
    report = prepared(tmp_path, plan, images)
    example = "row 2 of partition 0 is an image of 6 x 12 (height x width); 8 x 9 is the size of the others"
    assert (report.shards, report.columns, report.several) == ((), (), {"image": example})
    assert several_sizes([report], ReadPlan(columns=(plan, LABELS))) == {"image": example}
    # Of one size nothing is kept otherwise than ever.
    report = prepared(tmp_path, plan, images[:2])
    assert (report.several, report.columns[0].shape, report.columns[0].image) == ({}, (3, 8, 9), None)
    message = r"6 x 12 .* set data.resize; or cut a square" if plan.form else "shape .* takes 216"
    with pytest.raises(DataError, match=message):
        prepared(tmp_path, replace(plan, own_size="no"), images)


def test_partitions_of_one_size_each_are_of_several_together(tmp_path: Path) -> None:
    plan = replace(FILES, own_size="if_needed")
    reports = [prepared(tmp_path, plan, [picture(row)]) for row in (0, 5, 2)]
    rows = ReadPlan(columns=(plan, LABELS))
    assert several_sizes(reports[:2], rows) == {}
    expected = "images of one partition are 8 x 9 (height x width), and those of another 7 x 7"
    assert several_sizes(reports, rows) == {"image": expected}
    assert several_sizes(reports, ReadPlan(columns=(replace(plan, own_size="no"), LABELS))) == {}


def test_packed_pixels_are_known_whatever_their_length(tmp_path: Path) -> None:
    first = np.zeros((1, 5, 8), np.uint8)  # as long as its two rows of ten with their size
    other = np.arange(20, dtype=np.uint8).reshape(1, 2, 10)
    assert len(pack(other)) == first.size
    plan = ColumnPlan(name="image", shape=first.shape, own_size="if_needed")
    assert "image of 2 x 10" in prepared(tmp_path, plan, [first, other]).several["image"]
    report = prepared(tmp_path, replace(plan, own_size="yes"), [first, other])
    with table_of(tmp_path, report, replace(CENTRE, crop=2)) as table:
        np.testing.assert_array_equal(table.slice(1, 2)["image"][0], other[:, :, 4:6])
    assert list(packed_among(np.zeros((3, 4), np.uint8))) == [False] * 3


def test_damaged_ones_are_left_out_and_counted(tmp_path: Path) -> None:
    images = [png(picture(0)), png(picture(1))[:-30], png(picture(2))]
    rows = ReadPlan(columns=(FILES, LABELS))
    reader = RowReader(rows, 4)
    (found,) = reader.read([pa.record_batch([pa.array(images), pa.array([5, 6, 7])], names=["c0", "c1"])])
    assert found.values["label"].tolist() == [5, 7]
    np.testing.assert_array_equal(found.values["image"][1], picture(2))
    assert reader.damage.rows == 1
    assert "row 1 of partition 4" in reader.damage.examples[0]
    assert reader.columns[0].shape == (3, 7, 7)
    # A piece without a whole one leaves open what they are.
    reader = RowReader(rows, 4)
    assert list(reader.read([pa.record_batch([pa.array(images[1:2]), pa.array([6])], names=["c0", "c1"])])) == []
    assert (reader.columns, reader.damage.rows) == ((), 1)


@pytest.mark.parametrize("plan", [FILES, PIXELS])
def test_the_middle_is_cut_out_at_once_where_that_is_asked(plan: ColumnPlan) -> None:
    images = [picture(row) for row in range(5)]
    rows = ReadPlan(columns=(replace(plan, own_size="no", cut=6), LABELS))
    (found,) = RowReader(rows, 0).read([batch(plan, images)])
    assert (found.columns[0].shape, found.columns[0].image, found.files) == ((3, 6, 6), None, {})
    for got, image in zip(found.values["image"], images, strict=True):
        y, x = (image.shape[1] - 6) // 2, (image.shape[2] - 6) // 2
        np.testing.assert_array_equal(got, image[:, y : y + 6, x : x + 6])
    rows = ReadPlan(columns=(replace(plan, own_size="no", cut=7), LABELS))
    with pytest.raises(DataError, match=r"row 1 of partition 0 is an image of 6 x 12 .* crop_size is 7"):
        list(RowReader(rows, 0).read([batch(plan, images)]))


def test_a_table_of_several_sizes_needs_a_cut_that_fits(tmp_path: Path) -> None:
    report = prepared(tmp_path, FILES, [picture(row) for row in range(5)])
    for cut in (None, replace(CENTRE, crop=0)):
        with pytest.raises(DataError, match=r"image holds images of several sizes.* set data.crop"):
            table_of(tmp_path, report, cut).take(np.array([0]))
    with pytest.raises(DataError, match="crop_size is 7 and the images are 6x12"):
        table_of(tmp_path, report, replace(CENTRE, crop=7)).slice(0, 5)
    with pytest.raises(ValueError, match="need draws"):
        table_of(tmp_path, report, RANDOM).slice(0, 5)
    assert "own_size" in encode(report.columns[0])["image"]


def test_packed_pixels_come_back_or_are_damaged() -> None:
    planes = picture(3)
    packed, form = pack(planes), ImageForm()
    assert is_packed(packed)
    assert not is_packed(png(planes))
    np.testing.assert_array_equal(planes_of(memoryview(packed), form=form, channels=3), planes)
    for damaged in (packed[:-1], packed[:10], packed + b"x", packed[:8] + bytes(12) + packed[20:]):
        with pytest.raises(BadImage, match="not the pixels of the size before them"):
            planes_of(damaged, form=form, channels=3)
    with pytest.raises(BadImage, match="3 channels and 1 are wanted"):
        planes_of(packed, form=form, channels=1)
    assert str(SeveralSizes("x", "two of them")) == "column x: two of them"
