"""ImageNet's archives to chunks, without Spark: the plan, the pieces, the images, the tar files, the refusals."""

import dataclasses
import io
import itertools
import tarfile

import cv2
import numpy as np
import pytest
import simplejpeg
from PIL import Image

from imagenet_archive import (
    KINDS,
    SETTINGS,
    Patches,
    flat_tar,
    jpeg,
    make,
    make_train,
    make_val,
    rows_of,
    unusual,
    work_for,
)
from sparknet.data.export.imagenet_chunks import write_chunk
from sparknet.data.export.imagenet_job import begin, complete, finished_reports
from sparknet.data.export.imagenet_pieces import ImageRow, make_image
from sparknet.data.export.imagenet_plan import ChunkPlan, Layout, LeftOut, TarReport, draw_places, dump, load
from sparknet.data.rows.image_codec import decode
from sparknet.data.storage.place import LOCAL
from sparknet.errors import BadImage, ConfigError, DataError


def plan(split="train", *, images=10, **settings):
    return ChunkPlan(
        split=split,
        settings=dataclasses.replace(SETTINGS, **settings),
        images=images,
        labels="0" * 64,
        source="a.tar",
        source_bytes=10240,
    )


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    return make_train(tmp_path_factory.mktemp("train"), classes=8, per_class=6)


@pytest.fixture(scope="module")
def val(tmp_path_factory):
    return make_val(tmp_path_factory.mktemp("val"), images=40)


# the plan


@pytest.mark.parametrize(
    ("name", "value"),
    [("width", 0), ("height", 70000), ("chunks", 0), ("seed", -1), ("quality", 101)],
)
def test_settings_out_of_bounds_are_refused(name, value):
    with pytest.raises(ConfigError, match=f"{name} is {value}; it must be from"):
        plan(**{name: value})


def test_no_chunk_is_empty():
    with pytest.raises(ConfigError, match="11 train chunks for 10 images; each needs at least one"):
        plan(chunks=11)


@pytest.mark.parametrize(("images", "chunks"), [(10, 4), (10, 10), (1_281_167, 1000), (50_000, 50), (7, 1)])
def test_chunks_differ_by_one_image_at_most_and_follow_the_order(images, chunks):
    made = plan(images=images, chunks=chunks)
    numbers = [made.chunk_of(place) for place in range(images)]
    sizes = np.bincount(numbers)
    assert numbers == sorted(numbers)
    assert len(sizes) == chunks
    assert sizes.max() - sizes.min() <= 1
    assert [list(made.places_in(chunk)) for chunk in range(chunks)] == [
        list(places) for places in np.split(np.arange(images), np.cumsum(sizes)[:-1])
    ]


def test_the_drawn_order_is_a_permutation_of_seed_and_split_alone():
    places = draw_places(plan(images=1000))
    assert sorted(places.tolist()) == list(range(1000))
    assert np.array_equal(places, draw_places(plan(images=1000, width=1, quality=5, chunks=9)))
    others = [draw_places(plan(images=1000, seed=4)), draw_places(plan("val", images=1000))]
    for one, other in itertools.combinations([places, *others], 2):
        assert (one == other).mean() < 0.02
    # neighbours of the label file are of one class: they must not stay together
    assert abs(np.corrcoef(np.arange(1000), places)[0, 1]) < 0.1


def test_the_drawn_order_never_changes():
    """A restart with another numpy or another release must draw the same."""
    assert draw_places(plan(images=10)).tolist() == [3, 6, 1, 0, 7, 8, 9, 5, 4, 2]


def test_names_are_those_of_the_original():
    there = LOCAL.place("/there")
    layout = Layout(destination=there, plan=plan(images=2000, chunks=1000))
    assert layout.chunk(7).uri == "/there/ILSVRC2012_img_train/train.00007.tar"
    assert layout.report(7).uri == "/there/_prepared/train.00007.json"
    assert layout.label_file.uri == "/there/train.txt"
    layout = Layout(destination=there, plan=plan("val", images=2000, chunks=50))
    assert layout.chunk(49).uri == "/there/ILSVRC2012_img_val/val.049.tar"
    wide = Layout(destination=there, plan=plan("val", images=2000, chunks=2000))
    assert wide.chunk(7).name == "val.0007.tar"


def test_records_are_read_as_they_were_written(tmp_path):
    report = TarReport(
        chunk=3,
        images=5,
        bytes=10240,
        corrupt=(LeftOut(name="a", reason="b"),),
        missing=("c",),
        unlabelled=2,
        unlabelled_examples=("d", "e"),
        stretches=("f",),
    )
    for record in (report, plan()):
        place = LOCAL.place(str(tmp_path / "record.json"))
        place.write(dump(record))
        assert load(place, type(record)) == record
    place.write(b'{"chunk": 3}')
    with pytest.raises(DataError, match=r"record\.json is no record \(TarReport\): images is missing"):
        load(place, TarReport)


# pieces


@pytest.mark.parametrize("split", ["train", "val"])
def test_an_archive_is_cut_between_its_members(split, train, val, tmp_path, monkeypatch):
    monkeypatch.setattr("sparknet.data.export.imagenet_pieces._LEAST_PIECE_BYTES", 20_000)
    archive = {"train": train, "val": val}[split]
    work = work_for(archive, split, tmp_path)
    with tarfile.open(archive.tar) as tar:
        headers = {member.offset for member in tar}
    assert len(work.pieces) > 3
    assert {start for start, _ in work.pieces} <= headers
    assert [start for start, _ in work.pieces] == [0, *(stop for _, stop in work.pieces[:-1])]
    assert work.pieces[-1][1] == archive.tar.stat().st_size
    assert all(stop - start >= 20_000 for start, stop in work.pieces[:-1])
    rows = [row for row in rows_of(work, range(4)) if not row.reason and row.place >= 0]
    assert [row.name for row in rows] == list(archive.images)


def test_entries_of_an_inner_tar_that_is_not_there_are_missing(tmp_path):
    made = make_train(tmp_path, classes=3, per_class=4, oddities=False)
    with (made.labels / "train.txt").open("a") as file:
        file.write("n99999999/n99999999_1.JPEG 3\n")
    work = work_for(made, "train", tmp_path / "out")
    make(work)
    assert complete(work, corrupt_share=0).missing == ("n99999999_1.JPEG",)


def test_every_file_has_one_row_and_tells_what_became_of_it(train, tmp_path):
    work = work_for(train, "train", tmp_path)
    rows = rows_of(work, range(4))
    assert {row.name for row in rows if row.image} == set(train.images)
    assert {row.name for row in rows if row.reason} == train.corrupt
    assert {row.name for row in rows if row.place < 0} == train.unlabelled
    assert len(rows) == len(train.images) + 4
    assert all(work.name_at(row.place) == row.name for row in rows if row.place >= 0)


def test_only_wanted_chunks_are_made(train, tmp_path, monkeypatch):
    work = work_for(train, "train", tmp_path)
    made = []
    monkeypatch.setattr(
        "sparknet.data.export.imagenet_pieces.make_image", lambda data, settings: made.append(data) or b"made"
    )
    rows = rows_of(work, {2})
    assert {row.chunk for row in rows} == {2}
    assert len(made) == sum(bool(row.image) for row in rows)
    assert sorted(rows + rows_of(work, {0, 1, 3})) == sorted(rows_of(work, range(4)))


def test_a_chunk_may_have_no_image_at_all(tmp_path):
    made = make_val(tmp_path, images=3)
    made.tar.write_bytes(flat_tar(dict(list(made.images.items())[:2])))
    work = work_for(made, "val", tmp_path / "out", chunks=3)
    make(work)
    result = complete(work, corrupt_share=0)
    assert (result.images, result.missing, result.chunks) == (2, (list(made.images)[2],), 3)


def test_directories_in_the_names_of_labels_do_not_matter(train, tmp_path):
    bare = tmp_path / "bare.txt"
    lines = (train.labels / "train.txt").read_text().splitlines()
    bare.write_text("".join(f"{line.rpartition('/')[2]}\n" for line in lines))
    assert {
        row.name for row in rows_of(work_for(train, "train", tmp_path, labels=bare), range(4)) if row.image
    } == (set(train.images))


def test_the_second_file_of_a_name_has_no_label(tmp_path):
    made = make_val(tmp_path, images=4)
    twice = "ILSVRC2012_val_00000002.JPEG"
    made.tar.write_bytes(flat_tar(made.images) + flat_tar({twice: b"again"}))
    work = work_for(made, "val", tmp_path / "out", chunks=2)
    make(work)
    result = complete(work, corrupt_share=0)
    assert (result.images, result.unlabelled, result.unlabelled_examples) == (4, 1, (twice,))


def test_a_damaged_inner_tar_costs_the_images_in_its_damaged_stretch(tmp_path):
    made = make_train(tmp_path, classes=2, per_class=5, oddities=False)
    archive = bytearray(made.tar.read_bytes())
    second = archive.index(b"n01440764_8.JPEG")
    archive[second : second + 512] = b"\xff" * 512
    made.tar.write_bytes(archive)
    work = work_for(made, "train", tmp_path / "out")
    make(work)
    result = complete(work, corrupt_share=0.1)
    (damage,) = result.corrupt
    assert damage.name == "n01440764_8.JPEG"
    assert f"the archive is damaged at offset {second}" in damage.reason
    with pytest.raises(DataError, match="1 of 10 train images are corrupt, more than 0 of them"):
        complete(work, corrupt_share=0)
    assert (result.images, result.missing) == (9, ())


# images


@pytest.mark.parametrize("kind", ["jpeg", *KINDS])
def test_images_are_decoded_scaled_and_encoded(kind):
    patches = Patches(5)
    data = jpeg(patches.draw(80, 96)) if kind == "jpeg" else unusual(patches, kind)
    made = make_image(data, SETTINGS)
    assert simplejpeg.decode_jpeg_header(made)[:3] == (64, 64, "YCbCr")
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    expected = cv2.resize(decoded, (64, 64), interpolation=cv2.INTER_LINEAR).astype(int)
    error = np.abs(decode(made, channels=3, order="rgb") - expected).mean()
    assert error < 8  # quality 90, colour halved
    assert (made == data) == (kind == "fitting")
    assert make_image(data, SETTINGS) == made


def test_an_image_with_exif_data_is_written_anew():
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    Image.fromarray(Patches().draw(64, 64)).save(buffer, "JPEG", exif=exif, quality=95)
    made = make_image(buffer.getvalue(), SETTINGS)
    assert b"Exif" not in made
    upright = decode(buffer.getvalue(), channels=3, order="rgb").astype(int)
    assert np.abs(decode(made, channels=3, order="rgb") - upright).mean() < 5


def test_a_fitting_image_that_is_cut_short_is_refused():
    data = unusual(Patches(), "fitting")
    with pytest.raises(BadImage, match="cut short"):
        make_image(data[:-300], SETTINGS)


def test_quality_is_heeded():
    data = jpeg(Patches().draw(80, 96))
    sizes = [len(make_image(data, dataclasses.replace(SETTINGS, quality=quality))) for quality in (30, 90, 100)]
    assert sizes == sorted(sizes)
    assert sizes[0] * 2 < sizes[2]


# chunks


def rows_of_a_chunk(work):
    """Of chunk 1, which has the places 4, 5 and 6 of ten."""
    names = [work.name_at(place) for place in (4, 5)]
    return [
        ImageRow(1, -1, 7, "stray.JPEG", "", b""),
        ImageRow(1, -1, 9, "", "the archive is damaged at offset 9", b""),
        ImageRow(1, 4, 8, names[0], "", b"bbb"),
        ImageRow(1, 4, 9, names[0], "", b"again"),
        ImageRow(1, 5, 4, names[1], "no image", b""),
    ]


@pytest.fixture
def ten(tmp_path):
    made = make_val(tmp_path / "ten", images=10)
    return lambda name: work_for(made, "val", tmp_path / name, chunks=3)


def test_a_chunk_is_a_tar_file_that_tells_nothing_of_its_making(ten):
    work = ten("out")
    rows = rows_of_a_chunk(work)
    report = write_chunk(work, 1, rows)
    with tarfile.open(work.layout.chunk(1).local) as tar:
        (member,) = tar.getmembers()
        assert tar.extractfile(member).read() == b"bbb"
    assert member.name == rows[2].name
    assert (member.mtime, member.uid, member.gid, member.mode) == (0, 0, 0, 0o644)
    assert member.uname == member.gname == ""
    assert report.images == 1
    assert report.bytes == work.layout.chunk(1).local.stat().st_size
    assert report.corrupt == (LeftOut(name=rows[4].name, reason="no image"),)
    assert report.missing == (work.name_at(6),)
    assert (report.unlabelled, report.unlabelled_examples) == (2, ("stray.JPEG", rows[2].name))
    assert report.stretches == ("the archive is damaged at offset 9",)
    assert load(work.layout.report(1), TarReport) == report


def test_long_names_are_kept(tmp_path):
    name = "a" * 120 + "é.JPEG"
    made = make_val(tmp_path, images=1)
    (made.labels / "val.txt").write_text(f"{name} 0\n")
    made.tar.write_bytes(flat_tar({name: next(iter(made.images.values()))}))
    work = work_for(made, "val", tmp_path / "out", chunks=1)
    make(work)
    with tarfile.open(work.layout.chunk(0).local) as tar:
        assert tar.getnames() == [name]


def test_the_same_rows_are_the_same_bytes(ten):
    made = []
    for name in ("one", "two"):
        work = ten(name)
        report = write_chunk(work, 1, rows_of_a_chunk(work))
        made.append((report, work.layout.chunk(1).read(), work.layout.report(1).read()))
    assert made[0] == made[1]


def test_a_chunk_that_is_cut_off_leaves_nothing(ten):
    work = ten("out")

    def rows():
        yield rows_of_a_chunk(work)[2]
        raise DataError("the archive has gone")

    with pytest.raises(DataError, match="the archive has gone"):
        write_chunk(work, 1, rows())
    assert not work.layout.destination.files(recursive=True)


# the whole


def test_chunks_labels_and_counts_are_exact(train, tmp_path):
    work = work_for(train, "train", tmp_path)
    make(work)
    result = complete(work, corrupt_share=0.1)
    assert result.images == len(train.images)
    assert {damage.name for damage in result.corrupt} == train.corrupt
    assert set(result.missing) == train.missing
    assert set(result.unlabelled_examples) == train.unlabelled
    assert (result.chunks, result.kept, result.made_images) == (4, 0, result.images)
    lines = [line.split() for line in (tmp_path / "train.txt").read_text().splitlines()]
    assert {name: int(label) for name, label in lines} == {name: train.label_of[name] for name in train.images}
    stored = []
    for path in sorted((tmp_path / "ILSVRC2012_img_train").iterdir()):
        with tarfile.open(path) as tar:
            stored.extend(tar.getnames())
    assert [name for name, _ in lines] == stored


def test_finished_chunks_are_kept_and_the_rest_comes_out_the_same(train, tmp_path):
    whole = work_for(train, "train", tmp_path / "whole")
    make(whole)
    parts = tmp_path / "parts"
    make(work_for(train, "train", parts), [0, 2])
    before = {path.name: path.stat().st_ino for path in (parts / "ILSVRC2012_img_train").iterdir()}
    assert len(before) == 2
    again = work_for(train, "train", parts)
    assert again.open_chunks == (1, 3)
    make(again)
    result = complete(again, corrupt_share=0.1)
    assert result.kept == 2
    assert 0 < result.made_images < result.images
    complete(whole, corrupt_share=0.1)
    for directory in ("ILSVRC2012_img_train", "_prepared", "."):
        assert {
            name: data
            for name, data in ((p.name, p.read_bytes()) for p in (parts / directory).iterdir() if p.is_file())
        } == {p.name: p.read_bytes() for p in (tmp_path / "whole" / directory).iterdir() if p.is_file()}
    for name, inode in before.items():
        assert (parts / "ILSVRC2012_img_train" / name).stat().st_ino == inode


def test_a_chunk_without_its_tar_file_or_of_another_size_is_made_again(train, tmp_path):
    work = work_for(train, "train", tmp_path)
    make(work)
    work.layout.chunk(1).local.unlink()
    with work.layout.chunk(2).local.open("ab") as file:
        file.write(b"more")
    work.layout.report(3).local.unlink()
    assert sorted(finished_reports(work.layout)) == [0]
    with pytest.raises(DataError, match=r"train\.00001\.tar was written by a worker but is not seen here"):
        complete(work, corrupt_share=0.1)
    assert not work.layout.label_file.local.exists()


def test_what_killed_tasks_left_is_removed(train, tmp_path):
    work = work_for(train, "train", tmp_path)
    make(work)
    left = tmp_path / "ILSVRC2012_img_train" / ".train.00001.tar.0123456789abcdef.part"
    other = tmp_path / "_prepared" / ".val.001.json.0123456789abcdef.part"
    for path in (left, other):
        path.write_bytes(b"half")
    complete(work, corrupt_share=0.1)
    assert not left.exists()
    assert other.exists()  # of a run that may be going on


def test_reports_without_a_plan_count_for_nothing(train, tmp_path):
    work = work_for(train, "train", tmp_path)
    make(work)
    work.layout.chunk_directory.delete()
    work.layout.plan_file.delete()
    again = work_for(train, "train", tmp_path, quality=50)
    begin(again)
    assert sorted(path.name for path in (tmp_path / "_prepared").iterdir()) == ["train.plan.json"]


def test_too_many_corrupt_images_are_named_and_the_chunks_stay(train, tmp_path):
    work = work_for(train, "train", tmp_path)
    make(work)
    with pytest.raises(DataError, match=r"3 of 49 train images are corrupt, more than 0\.06 of them") as caught:
        complete(work, corrupt_share=0.06)
    assert all(name in str(caught.value) for name in train.corrupt)
    assert not (tmp_path / "train.txt").exists()
    assert not work_for(train, "train", tmp_path).open_chunks
    assert len(complete(work, corrupt_share=0.07).corrupt) == 3


def test_a_long_list_of_corrupt_images_is_cut(tmp_path):
    made = make_val(tmp_path, images=30)
    made.tar.write_bytes(flat_tar({name: b"none" for name in made.images}))
    work = work_for(made, "val", tmp_path / "out")
    make(work)
    with pytest.raises(DataError, match="30 of 30 val images") as caught:
        complete(work, corrupt_share=0.5)
    assert str(caught.value).count("are no image") == 10
    assert str(caught.value).endswith("; and 20 more")


# refusals before anything is written


def test_an_unknown_archive_is_refused(train, tmp_path):
    for path, why in ((tmp_path / "none.tar", "there is no such file"), (tmp_path, "it is a directory")):
        with pytest.raises(DataError, match=f"{path}: {why}; .* set --train-tar"):
            work_for(train, "train", tmp_path / "out", tar=path)


def test_archives_of_the_other_kind_are_refused(train, val, tmp_path):
    with pytest.raises(DataError, match=r"holds ILSVRC2012_val_00000001\.JPEG at offset 512; .*as --val-tar"):
        work_for(train, "train", tmp_path, tar=val.tar)
    with pytest.raises(DataError, match=r"holds n01440764\.tar at offset 512; .*as --train-tar"):
        work_for(val, "val", tmp_path, tar=train.tar)


def test_an_empty_archive_is_refused(val, tmp_path):
    empty = tmp_path / "empty.tar"
    empty.write_bytes(flat_tar({}))
    with pytest.raises(DataError, match=r"empty\.tar holds no files"):
        work_for(val, "val", tmp_path, tar=empty)


@pytest.mark.parametrize("split", ["train", "val"])
def test_an_archive_that_is_cut_short_is_refused(split, train, val, tmp_path):
    archive = {"train": train, "val": val}[split]
    short = tmp_path / "short.tar"
    data = archive.tar.read_bytes()
    within = data.index(list(archive.images.values())[30]) + 100
    short.write_bytes(data[:within])
    with pytest.raises(DataError, match=r"short\.tar: at offset \d+ .* is damaged: cut short.*; fetch it again"):
        work_for(archive, split, tmp_path / "out", tar=short)
    assert not (tmp_path / "out").exists()


def test_another_plan_is_refused_with_what_differs(train, tmp_path):
    begin(work_for(train, "train", tmp_path))
    with pytest.raises(ConfigError, match="has train chunks with seed 3 in place of 4, quality 90 in place of 80;"):
        work_for(train, "train", tmp_path, seed=4, quality=80)
    other = make_train(tmp_path / "other", classes=3, per_class=5, oddities=False)
    with pytest.raises(ConfigError, match=r"images 49 in place of 15, labels .* source_bytes .*give another --to"):
        work_for(other, "train", tmp_path)
    assert work_for(train, "train", tmp_path).open_chunks == (0, 1, 2, 3)


def test_train_and_val_have_plans_of_their_own(train, val, tmp_path):
    begin(work_for(train, "train", tmp_path))
    work = work_for(val, "val", tmp_path, seed=9, chunks=7)
    make(work)
    assert complete(work, corrupt_share=0).images == 40
    assert len(work_for(train, "train", tmp_path).open_chunks) == 4


def test_chunks_of_somebody_else_are_not_mixed_with_ours(train, tmp_path):
    strange = tmp_path / "ILSVRC2012_img_train" / "train.00000.tar"
    strange.parent.mkdir()
    strange.write_bytes(b"mine")
    with pytest.raises(ConfigError, match=r"holds 1 tar files, but .* is not there; chunks are not mixed"):
        work_for(train, "train", tmp_path)
    assert strange.read_bytes() == b"mine"
