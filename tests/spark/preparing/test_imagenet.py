"""`sparknet data imagenet` with Spark: exact, repeatable, gone on with after a kill, local and on S3."""

import dataclasses
import hashlib
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import psutil
import pyarrow as pa
import pytest
from pyspark.sql import SparkSession

import s3_server
from imagenet_archive import Archive, flat_tar, make_train, make_val, work_for
from sparknet.cli.main import main
from sparknet.data.export.imagenet_job import finished_reports
from sparknet.data.export.imagenet_pieces import ImageRow
from sparknet.data.rows.image_codec import decode, encode_jpeg, resize
from sparknet.data.storage.place import LOCAL
from sparknet.errors import DataError
from sparknet.spark.preparing import imagenet
from sparknet.spark.preparing.imagenet import make_chunks

pytestmark = pytest.mark.spark

CHUNKS = 40


@pytest.fixture(scope="module")
def server():
    with s3_server.s3_server("photographs") as server:
        yield server


@pytest.fixture(scope="module")
def spark(server):
    """The session that the commands of this process adopt; its workers know the S3 server."""
    with pytest.MonkeyPatch.context() as patch:
        s3_server.reach(server, patch)
        patch.setenv("PYSPARK_PYTHON", sys.executable)
        # The Java machine may have been started by other tests, with their environment.
        known = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
        session = (
            SparkSession.builder.master("local[2,2]")
            .config(map={f"spark.executorEnv.{name}": value for name, value in known.items()})
            .appName("test_imagenet")
            .config("spark.ui.enabled", "false")
            .config("spark.driver.host", "127.0.0.1")
            .config("spark.sql.shuffle.partitions", "3")
            .getOrCreate()
        )
        session.sparkContext.setLogLevel("OFF")
        yield session
        session.stop()


@pytest.fixture(scope="module")
def train(tmp_path_factory) -> Archive:
    """5,000 images and some oddities."""
    return make_train(tmp_path_factory.mktemp("train"), classes=50, per_class=100)


@pytest.fixture(scope="module")
def few(tmp_path_factory) -> Archive:
    return make_train(tmp_path_factory.mktemp("few"), classes=6, per_class=10)


def arguments(archive, to, *, chunks=CHUNKS, seed=1):
    """The command line for a train archive."""
    given = ["--train-tar", archive.tar, "--labels", archive.labels, "--to", to, "--train-chunks", chunks]
    given += ["--width", 64, "--height", 64, "--seed", seed, "--corrupt-share", 0.1]
    return ["data", "imagenet", *map(str, given)]


@pytest.fixture(scope="module")
def made(spark, train, tmp_path_factory):
    """Where all of the 5,000 have been made in one go."""
    to = tmp_path_factory.mktemp("made")
    assert main(arguments(train, to)) == 0
    return to


def chunks_of(to, split="train"):
    return sorted((to / f"ILSVRC2012_img_{split}").iterdir())


def members(to, split="train"):
    """Name and bytes of every image, in the order of chunks and places."""
    for path in chunks_of(to, split):
        with tarfile.open(path) as tar:
            for member in tar:
                yield member.name, tar.extractfile(member).read()


def digests(to):
    """SHA-256 of every file of a destination."""
    return {
        str(path.relative_to(to)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in to.rglob("*")
        if path.is_file()
    }


def test_every_image_is_there_once_with_its_label(made, train):
    names = [name for name, _ in members(made)]
    assert len(names) == len(set(names)) == len(train.images) == 4997
    assert set(names) == set(train.images)
    lines = [line.rsplit(" ", 1) for line in (made / "train.txt").read_text().splitlines()]
    assert [name for name, _ in lines] == names
    assert all(train.label_of[name] == int(label) for name, label in lines)


def test_chunks_are_named_sized_and_mixed_as_promised(made, train):
    assert [path.name for path in chunks_of(made)] == [f"train.{number:05}.tar" for number in range(CHUNKS)]
    label_sets, sizes = [], []
    for path in chunks_of(made):
        with tarfile.open(path) as tar:
            labels = [train.label_of[name] for name in tar.getnames()]
        sizes.append(len(labels))
        label_sets.append(len(set(labels)))
    assert sum(sizes) == 4997
    assert set(sizes) <= {123, 124, 125, 126}  # 125 or 126, less what is corrupt or missing
    assert min(label_sets) > 35  # of 50 classes: 46 are expected among 125 images


def test_images_are_decoded_scaled_and_encoded(made, train):
    checked = 0
    for number, (name, data) in enumerate(members(made)):
        if number % 20 and name != next(iter(train.images)):
            continue
        source = train.images[name]
        pixels = resize(decode(source, channels=3, order="rgb"), (64, 64), "exact")
        assert data in (source, encode_jpeg(pixels, quality=90))
        reference = cv2.resize(
            cv2.imdecode(np.frombuffer(source, np.uint8), cv2.IMREAD_COLOR_RGB), (64, 64)
        ).astype(int)
        assert np.abs(decode(data, channels=3, order="rgb") - reference).mean() < 10
        checked += 1
    assert checked >= 250


def test_nothing_but_the_promised_files_is_left(made):
    assert sorted(path.name for path in made.iterdir()) == ["ILSVRC2012_img_train", "_prepared", "train.txt"]
    records = sorted(path.name for path in (made / "_prepared").iterdir())
    assert records == [*(f"train.{number:05}.json" for number in range(CHUNKS)), "train.plan.json"]
    assert len(chunks_of(made)) == CHUNKS


def test_one_seed_gives_the_same_bytes_and_another_seed_others(spark, few, tmp_path):
    assert main(arguments(few, tmp_path / "one", chunks=7)) == 0
    assert main([*arguments(few, tmp_path / "two", chunks=7), "--passes", "3"]) == 0
    assert main(arguments(few, tmp_path / "other", chunks=7, seed=2)) == 0
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    one, other = ([name for name, _ in members(tmp_path / name)] for name in ("one", "other"))
    assert one != other
    assert sorted(one) == sorted(other)


def test_the_session_is_left_as_it_was(spark, made):
    assert spark.conf.get("spark.sql.shuffle.partitions") == "3"
    assert spark.conf.get("spark.sql.adaptive.enabled") == "true"
    assert spark.range(3).count() == 3


def test_both_archives_at_once_and_the_summary(spark, few, tmp_path, capfd):
    val = make_val(tmp_path, images=60)
    (few.labels / "val.txt").write_bytes((val.labels / "val.txt").read_bytes())
    to = tmp_path / "to"
    more = ["--val-tar", str(val.tar), "--val-chunks", "4"]
    assert main([*arguments(few, to, chunks=5), *more]) == 0
    told = capfd.readouterr()
    facts = dict(line.strip().split(None, 1) for line in told.out.splitlines())
    assert facts["val"] == "60 of 60 images"
    assert facts["train"] == f"{len(few.images)} of {len(few.label_of)} images"
    assert facts["corrupt"].startswith("3: ")
    assert facts["missing"] == f"1: {next(iter(few.missing))}"
    assert facts["unlabelled"] == f"1: {next(iter(few.unlabelled))}"
    assert facts["speed"].endswith("images/s")
    assert re.search(r" s  val: all 4 chunks are there, and .*/val\.txt\n", told.err)
    assert {name for name, _ in members(to, "val")} == set(val.images)
    lines = dict(line.split() for line in (to / "val.txt").read_text().splitlines())
    assert {name: int(label) for name, label in lines.items()} == val.label_of


def test_progress_is_told_while_it_is_made(spark, few, tmp_path):
    told = []
    make_chunks(spark, work_for(few, "train", tmp_path, chunks=60), watch=told.append)
    assert told
    assert all(0 <= progress.pieces_read <= progress.pieces for progress in told)
    assert {progress.chunks for progress in told} == {60}
    done = [progress.chunks_done for progress in told]
    assert done == sorted(done)
    assert done[-1] > 0


def failed_tasks(spark):
    """Of all stages that Spark still knows."""
    tracker = spark.sparkContext.statusTracker()
    stages = [tracker.getStageInfo(number) for number in range(1000)]
    return sum(stage.numFailedTasks for stage in stages if stage)


def test_an_archive_that_goes_away_is_told_in_words_and_once(spark, tmp_path):
    gone = make_train(tmp_path, classes=2, per_class=3, oddities=False)
    work = work_for(gone, "train", tmp_path / "to", chunks=2)
    gone.tar.unlink()
    before = failed_tasks(spark)
    with pytest.raises(DataError, match=rf"^{re.escape(str(gone.tar))}: cannot be read: .*check that every worker"):
        make_chunks(spark, work)
    assert failed_tasks(spark) == before
    assert not [path for path in (tmp_path / "to").rglob("*") if path.is_file()]


def test_no_chunk_lacks_what_a_task_could_not_read(spark, tmp_path):
    made = make_train(tmp_path, classes=20, per_class=20, oddities=False)
    work = work_for(made, "train", tmp_path / "to", chunks=3)
    assert len(work.pieces) > 1
    # offsets that are no numbers stand for any mistake of ours: it comes up in one task only
    spoilt = dataclasses.replace(work, pieces=(*work.pieces[:-1], (None, None)))
    before = failed_tasks(spark)
    with pytest.raises(DataError, match=r"^TypeError: "):
        make_chunks(spark, spoilt)
    assert failed_tasks(spark) == before
    assert not [path for path in (tmp_path / "to").rglob("*") if path.is_file()]
    make_chunks(spark, work)
    assert {name for name, _ in members(tmp_path / "to")} == set(made.images)


def test_a_failure_reaches_every_chunk_by_the_shuffle(tmp_path):
    """And not only by the file, which a shared disk may show too late."""
    made = make_train(tmp_path, classes=2, per_class=3, oddities=False)
    work = work_for(made, "train", tmp_path / "to", chunks=3)
    made.tar.unlink()
    failure = LOCAL.place(str(tmp_path / "failure"))
    this = imagenet._Pass(work=work, keys={0: 7, 1: 8, 2: 9}, failure=failure)
    batches = imagenet._read_pieces(this, iter([pa.record_batch({"id": [0]})]))
    rows = [row for batch in batches for row in batch.to_pylist()]
    assert [row["key"] for row in rows] == [7, 8, 9]
    assert all(row["reason"] == failure.read().decode() for row in rows)
    with pytest.raises(DataError, match=re.escape(str(made.tar))):
        list(imagenet._whole([ImageRow(0, row["place"], 0, "", row["reason"], b"") for row in rows]))


def test_a_chunk_all_of_whose_images_are_missing_is_there(spark, tmp_path):
    made = make_val(tmp_path, images=6)
    made.tar.write_bytes(flat_tar(dict(list(made.images.items())[:2])))
    work = work_for(made, "val", tmp_path / "to", chunks=6)
    make_chunks(spark, work)
    assert len(finished_reports(work.layout)) == 6
    assert {name for name, _ in members(tmp_path / "to", "val")} == set(list(made.images)[:2])


# cut off and gone on with


@dataclass
class Killed:
    """A destination whose driver and workers were killed while chunks were being written."""

    to: Path
    finished: dict[str, tuple[int, int]]
    """Inode and time of change of the chunks that had their report."""


def start(archive, to):
    """The real command in a process group of its own, as a shell starts it."""
    return subprocess.Popen(
        [sys.executable, "-m", "sparknet.cli.main", *arguments(archive, to)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for_reports(process, to):
    """Block until the first chunk is finished; the processes that the command consists of."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        if any((to / "_prepared").glob("train.[0-9]*.json")):
            return psutil.Process(process.pid).children(recursive=True)
        time.sleep(0.005)  # polling for a file that another process writes
    raise AssertionError("no chunk was finished in 120 s")


def assert_gone(processes, seconds):
    _, alive = psutil.wait_procs(processes, timeout=seconds)
    alive = [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]
    assert not alive, f"still there after {seconds} s: {alive}"


@pytest.fixture(scope="module")
def killed(train, tmp_path_factory):
    to = tmp_path_factory.mktemp("killed")
    process = start(train, to)
    children = wait_for_reports(process, to)
    os.killpg(process.pid, signal.SIGKILL)
    for child in children:
        if child.is_running():
            child.kill()
    process.communicate()
    assert_gone(children, 10)
    finished = {}
    for report in (to / "_prepared").glob("train.[0-9]*.json"):
        path = to / "ILSVRC2012_img_train" / f"{report.stem}.tar"
        finished[path.name] = (path.stat().st_ino, path.stat().st_mtime_ns)
    return Killed(to=to, finished=finished)


def test_a_killed_run_is_gone_on_with(killed, made, spark, train, capfd):
    assert 0 < len(killed.finished) < CHUNKS
    assert not (killed.to / "train.txt").exists()
    for name in killed.finished:  # whole although all was killed
        assert (killed.to / "ILSVRC2012_img_train" / name).read_bytes() == (
            made / "ILSVRC2012_img_train" / name
        ).read_bytes()
    assert main(arguments(train, killed.to)) == 0
    assert f"{len(killed.finished)} of them kept" in capfd.readouterr().out
    for name, (inode, changed) in killed.finished.items():
        now = (killed.to / "ILSVRC2012_img_train" / name).stat()
        assert (now.st_ino, now.st_mtime_ns) == (inode, changed)
    assert digests(killed.to) == digests(made)


def test_ctrl_c_ends_everything_at_once_and_the_run_is_gone_on_with(spark, few, tmp_path):
    process = start(few, tmp_path)
    assert any(" images from " in line for line in process.stderr), process.communicate()  # the job begins
    children = psutil.Process(process.pid).children(recursive=True)
    assert any("java" in child.name() for child in children)
    began = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: workers and Java machine get it too
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert time.monotonic() - began < 5
    assert "interrupted; the finished chunks stay, and the same command goes on" in err
    assert "Traceback" not in err
    assert_gone(children, 5)
    assert not (tmp_path / "train.txt").exists()
    assert main(arguments(few, tmp_path)) == 0
    assert {name for name, _ in members(tmp_path)} == set(few.images)


# S3


def test_from_s3_to_s3_with_a_server_that_fails_now_and_then(server, spark, few, tmp_path):
    assert main(arguments(few, tmp_path / "local", chunks=7)) == 0
    client = server.client()
    client.upload_file(str(few.tar), "photographs", f"raw/{few.tar.name}")
    client.upload_file(str(few.labels / "train.txt"), "photographs", "raw/train.txt")
    server.clear()
    server.inject("500", probability=0.05, seed=1)
    server.inject("cut", probability=0.02, seed=2, method="GET")
    given = arguments(few, "s3://photographs/made", chunks=7)
    given[given.index("--train-tar") + 1] = f"s3://photographs/raw/{few.tar.name}"
    given[given.index("--labels") + 1] = "s3://photographs/raw"
    assert main([*given, "--s3-endpoint", server.endpoint]) == 0
    assert server.injected["500"] > 0
    size = few.tar.stat().st_size
    reads = server.ranges(few.tar.name)
    heads = [last for first, last in reads if last - first < 4096]
    assert heads  # of inner tars
    assert all(last == size - 1 or last - first + 1 >= 8 << 20 for first, last in reads if last not in heads)
    on_s3 = {
        key.removeprefix("made/"): client.get_object(Bucket="photographs", Key=key)["Body"].read()
        for key in server.keys("photographs")
        if key.startswith("made/") and not key.endswith("/")
    }
    assert {name: hashlib.sha256(data).hexdigest() for name, data in on_s3.items()} == digests(tmp_path / "local")
    assert not server.open_uploads("photographs")
    assert main([*given, "--s3-endpoint", server.endpoint]) == 0  # all is there
