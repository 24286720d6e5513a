"""Storage against a server that breaks: no byte lost or doubled, nothing half-written, and messages that help."""

import hashlib
import os
import pickle
import signal
import subprocess
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from formats import cifar_directory, random_rows, write_cifar, write_mnist
from opened import opened, partitions, pixels_and_labels
from s3_server import CREDENTIALS, reach, s3_server
from sparknet.data.sources import cifar10, mnist
from sparknet.data.storage import arrow_systems, place, retry
from sparknet.data.storage.fingerprint import describe_files
from sparknet.data.storage.place import LOCAL, Storage
from sparknet.errors import DataError

MB = 1 << 20
BUCKET = "pictures"


@pytest.fixture(scope="module")
def running():
    with s3_server(BUCKET) as server:
        yield server


@pytest.fixture
def server(running, monkeypatch):
    """The server, found by the environment, with an empty bucket; pauses are noted and not waited for."""
    reach(running, monkeypatch)
    running.clear()
    running.empty(BUCKET)
    running.pauses = []
    monkeypatch.setattr(retry, "pause", running.pauses.append)
    yield running
    running.clear()


@pytest.fixture(scope="module")
def big():
    return np.random.default_rng(7).bytes(41 * MB + 12_345)


def put(server, key, data):
    server.client().put_object(Bucket=BUCKET, Key=key, Body=data)
    server.clear()
    return LOCAL.place(f"s3://{BUCKET}/{key}")


def stored(server, key):
    return server.client().get_object(Bucket=BUCKET, Key=key)["Body"].read()


def digest(data):
    return hashlib.sha256(data).hexdigest()


# Reading ---------------------------------------------------------------------------------------------------------


def test_reads_are_ranges_of_8_mb_or_the_rest(server, big):
    place = put(server, "big", big)
    with place.open() as file:
        read = b"".join(iter(lambda: file.read(70_001), b""))
    assert digest(read) == digest(big)
    ranges = server.ranges("/big")
    assert [last - first + 1 for first, last in ranges] == [8 * MB] * 5 + [MB + 12_345]
    server.clear()
    assert digest(place.read()) == digest(big)
    assert [last - first + 1 for first, last in server.ranges("/big")] == [32 * MB, 9 * MB + 12_345]
    server.clear()
    assert place.read_range(3 * MB, 11 * MB) == big[3 * MB : 14 * MB]
    assert server.ranges("/big") == [(3 * MB, 14 * MB - 1)]
    with pytest.raises(DataError, match=rf"big: ends at byte {len(big)}, 2 bytes from {len(big) - 1} are needed"):
        place.read_range(len(big) - 1, 2)


@pytest.mark.parametrize("kind", ["500", "slow_down", "cut", "lost"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_broken_request_is_made_again(server, big, kind, method):
    place = put(server, "big", big)
    server.inject(kind, times=3, method=method)
    assert digest(place.read()) == digest(big)
    assert server.injected == {kind: 3}
    assert 1 <= len(server.pauses) <= 3


def test_a_stalled_answer_is_given_up_and_asked_for_again(server, monkeypatch):
    monkeypatch.setattr(arrow_systems, "_REQUEST_SECONDS", 1.0)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "another")  # and so another file system than the other tests'
    place = put(server, "small", b"abc")
    server.inject("delay", times=1, method="GET", seconds=4.0)
    assert place.read() == b"abc"
    assert server.injected == {"delay": 1}
    assert len(server.pauses) == 1


def test_many_random_faults_lose_and_double_nothing(server, big):
    place = put(server, "big", big)
    for number, kind in enumerate(("500", "slow_down", "cut", "lost")):
        server.inject(kind, probability=0.1, seed=number)
    with place.open() as file:
        read = b"".join(iter(lambda: file.read(1_000_003), b""))
    pieces = [place.read_range(at, min(MB, len(big) - at)) for at in range(0, len(big), MB)]
    assert digest(read) == digest(b"".join(pieces)) == digest(big)
    assert sum(server.injected.values()) >= 10
    assert len(server.injected) == 4


def test_a_server_that_stays_broken(server):
    place = put(server, "small", b"abc")
    server.inject("slow_down")
    with pytest.raises(DataError, match=f"s3://{BUCKET}/small: cannot be read: .*overloaded; try again later"):
        place.read()
    assert server.injected == {"slow_down": 6}
    assert len(server.pauses) == 5


def test_nobody_listens(server):
    place = Storage(s3_endpoint="http://127.0.0.1:9").place(f"s3://{BUCKET}/small")
    with pytest.raises(DataError, match=r"cannot be looked up: the server cannot be reached .*data\.s3_endpoint"):
        place.facts()
    assert len(server.pauses) == 5


def test_readers_of_one_file_side_by_side(server, big):
    place = put(server, "big", big)
    server.inject("cut", probability=0.2, seed=3, method="GET")
    starts = range(0, len(big), 5 * MB)
    with ThreadPoolExecutor(4) as pool:
        pieces = pool.map(lambda at: place.read_range(at, min(5 * MB, len(big) - at)), starts)
        assert digest(b"".join(pieces)) == digest(big)
    assert server.injected["cut"] >= 1


def test_a_tar_is_indexed_and_read_in_place(server, tmp_path):
    contents = {f"{number:03}.jpg": os.urandom(100_000 + number) for number in range(150)}
    with tarfile.open(tmp_path / "images.tar", "w") as tar:
        for name, data in contents.items():
            (tmp_path / name).write_bytes(data)
            tar.add(tmp_path / name, name)
    place = put(server, "images.tar", (tmp_path / "images.tar").read_bytes())
    server.inject("cut", times=2, method="GET")
    with place.open() as file, tarfile.open(fileobj=file) as tar:
        assert {member.name: tar.extractfile(member).read() for member in tar} == contents
    assert server.injected == {"cut": 2}
    assert len(server.ranges("images.tar")) <= 6


# Listing and deleting --------------------------------------------------------------------------------------------


def test_facts_and_listings(server):
    for key in ("d/b.bin", "d/a.bin", "d/x.txt", "d/below/c.bin", "dd"):
        put(server, key, key.encode())
    root = LOCAL.place(f"s3://{BUCKET}/d")
    facts = (root / "a.bin").facts()
    assert facts
    assert (facts.name, facts.bytes, facts.is_directory) == ("a.bin", 7, False)
    assert facts.modified_ns
    assert root.files("a*") == [facts]
    assert [place.uri for place in root.children("*.bin", recursive=True)] == [
        f"s3://{BUCKET}/d/{name}" for name in ("a.bin", "b.bin", "below/c.bin")
    ]
    assert [place.name for place in root.children()] == ["a.bin", "b.bin", "x.txt"]
    for directory in (root, root / "below", root.parent):
        found = directory.facts()
        assert found
        assert found.is_directory
    assert (root / "none").facts() is None
    assert (root / "none").children() == []


@pytest.mark.parametrize("kind", ["500", "slow_down", "cut", "lost"])
def test_a_listing_that_breaks_is_made_again(server, kind):
    put(server, "d/a", b"1")
    server.inject(kind, times=2, method="GET")
    assert [place.name for place in LOCAL.place(f"s3://{BUCKET}/d").children()] == ["a"]
    assert server.injected == {kind: 2}


@pytest.mark.parametrize("kind", ["500", "cut", "lost"])
def test_delete(server, kind):
    for key in ("kept", "d/a", "d/below/b", "e/f"):
        put(server, key, b"1")
    server.inject(kind, times=1, method="DELETE")
    server.inject(kind, times=1, method="POST")
    for name in ("d", "e/f", "never", "d"):
        LOCAL.place(f"s3://{BUCKET}/{name}").delete()
    assert [key for key in server.keys(BUCKET) if not key.endswith("/")] == ["kept"]
    assert server.injected == {kind: 2}


# Writing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 3, 5 * MB, 41 * MB])
def test_what_is_written_is_read_back(server, big, size):
    place = LOCAL.place(f"s3://{BUCKET}/out/file")
    place.write(big[:size])
    assert digest(stored(server, "out/file")) == digest(place.read()) == digest(big[:size])
    with place.writing() as file:
        file.write(big[: size // 2])
        file.write(big[size // 2 : size])
    assert digest(place.read()) == digest(big[:size])
    assert server.keys(BUCKET) == ["out/file"]
    assert server.open_uploads(BUCKET) == []


@pytest.mark.parametrize("size", [0, 3, 41 * MB])
def test_a_file_goes_there_and_comes_back(server, big, tmp_path, size):
    (tmp_path / "file").write_bytes(big[:size])
    for there in (LOCAL.place(f"s3://{BUCKET}/out/file"), LOCAL.place(str(tmp_path / "out" / "file"))):
        with (tmp_path / "file").open("rb") as file:
            there.upload(file)
            there.upload(file)  # wherever it was read up to
        assert digest(there.read()) == digest(big[:size])
        (tmp_path / "back").write_bytes(b"what was there")
        there.download(tmp_path / "back")
        assert digest((tmp_path / "back").read_bytes()) == digest(big[:size])
        (tmp_path / "back").unlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "out"]


def test_a_file_that_grows_and_goes_while_it_is_sent(server, big, tmp_path):
    (tmp_path / "file").write_bytes(big)
    server.inject("delay", times=1, method="PUT", part="partNumber=1", seconds=1.0)
    with (tmp_path / "file").open("rb") as file, ThreadPoolExecutor(1) as pool:
        sending = pool.submit(LOCAL.place(f"s3://{BUCKET}/file").upload, file)
        server.wait_for("delay")
        with (tmp_path / "file").open("ab") as more:
            more.write(b"more")
        (tmp_path / "file").unlink()
        sending.result()
    assert digest(stored(server, "file")) == digest(big)


def test_a_file_that_does_not_come_whole_leaves_what_was_there(server, big, tmp_path):
    place = put(server, "file", big)
    (tmp_path / "file").write_bytes(b"what was there")
    server.inject("cut", method="GET", part="file")
    with pytest.raises(DataError, match="cannot be read"):
        place.download(tmp_path / "file")
    assert server.injected["cut"]
    assert (tmp_path / "file").read_bytes() == b"what was there"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.fixture
def in_pieces(monkeypatch):
    """Uploads hand over 8 MB at a time, and what breaks is repeated by us alone."""
    monkeypatch.setattr(place, "_UPLOAD_BYTES", 8 * MB)
    monkeypatch.setattr(arrow_systems, "_UPLOAD_ATTEMPTS", 1)


@pytest.mark.usefixtures("in_pieces")
@pytest.mark.parametrize("kind", ["500", "slow_down", "cut", "lost"])
@pytest.mark.parametrize(
    ("method", "part"),
    [("PUT", "partNumber=1"), ("PUT", "partNumber=3"), ("POST", "uploads"), ("POST", "uploadId")],
)
def test_an_upload_that_breaks_is_made_again(server, big, kind, method, part):
    data = big[: 21 * MB]
    server.inject(kind, times=2, method=method, part=part)
    LOCAL.place(f"s3://{BUCKET}/file").write(data)
    assert digest(stored(server, "file")) == digest(data)
    assert server.injected == {kind: 2}
    assert 1 <= len(server.pauses) <= 2


def test_a_part_that_breaks_is_sent_again_alone(server, big):
    server.inject("500", times=1, method="PUT", part="partNumber=2")
    LOCAL.place(f"s3://{BUCKET}/file").write(big)
    assert digest(stored(server, "file")) == digest(big)
    assert server.injected == {"500": 1}
    assert server.pauses == []
    assert sum(request.method == "PUT" for request in server.requests) == 6
    assert server.open_uploads(BUCKET) == []


def test_an_upload_whose_completion_was_done_but_not_answered(server, big):
    server.inject("lost", times=1, method="POST", part="uploadId")
    LOCAL.place(f"s3://{BUCKET}/file").write(big[: 21 * MB])
    assert digest(stored(server, "file")) == digest(big[: 21 * MB])
    assert server.injected == {"lost": 1}
    assert sum(request.method == "PUT" for request in server.requests) == 3
    assert server.keys(BUCKET) == ["file"]


@pytest.mark.usefixtures("in_pieces")
@pytest.mark.parametrize("part", [f"partNumber={number}" for number in (1, 2, 3)])
@pytest.mark.parametrize("before", [b"", b"what was there"])
def test_an_upload_that_fails_for_good_leaves_what_was_there(server, big, part, before):
    place = put(server, "file", before) if before else LOCAL.place(f"s3://{BUCKET}/file")
    server.inject("denied", method="PUT", part=part)
    with pytest.raises(DataError, match=f"s3://{BUCKET}/file: cannot be written: access is refused"):
        place.write(big[: 21 * MB])
    assert server.injected["denied"] >= 1
    assert server.keys(BUCKET) == (["file"] if before else [])
    assert not before or stored(server, "file") == before


def write_and_raise(place, data, error):
    with place.writing() as file:
        file.write(data)
        raise error


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt()])
def test_a_block_that_raises_writes_nothing(server, big, error):
    with pytest.raises(type(error)):
        write_and_raise(LOCAL.place(f"s3://{BUCKET}/file"), big, error)
    assert server.keys(BUCKET) == []
    assert server.requests == []


UPLOAD = """
import sys
from sparknet.data.storage import place
place._UPLOAD_BYTES = 8 << 20
place.LOCAL.place("s3://pictures/file").write(sys.stdin.buffer.read())
"""


@pytest.mark.parametrize("killed", [signal.SIGINT, signal.SIGKILL])
def test_a_process_that_is_stopped_while_it_uploads(server, big, killed):
    server.inject("delay", times=1, method="PUT", part="partNumber=2", seconds=1.0)
    with subprocess.Popen(
        [sys.executable, "-c", UPLOAD], stdin=subprocess.PIPE, stderr=subprocess.PIPE
    ) as uploading:
        uploading.stdin.write(big)
        uploading.stdin.close()
        server.wait_for("delay")
        uploading.send_signal(killed)
        assert uploading.wait(60) != 0
    if killed == signal.SIGINT:
        assert digest(stored(server, "file")) == digest(big)
    else:
        assert server.keys(BUCKET) == []


# What people are told --------------------------------------------------------------------------------------------


def test_a_missing_bucket_and_a_missing_file(server):
    missing = LOCAL.place("s3://no-such-bucket/key")
    for act in (missing.facts, missing.read, missing.children, missing.delete):
        with pytest.raises(DataError, match=r"s3://no-such-bucket: no such bucket; correct the URI"):
            act()
    with pytest.raises(DataError, match=r"no-such-bucket/key: cannot be written: no such bucket"):
        missing.write(b"1")
    with pytest.raises(DataError, match=f"s3://{BUCKET}/key: cannot be read: no such file; correct the path"):
        LOCAL.place(f"s3://{BUCKET}/key").read()
    assert server.pauses == []


def test_a_small_file_that_goes_while_it_is_read(server):
    """The answer that says so is longer than the file, and what Arrow then tells is not what happened."""
    place = put(server, "small", b"abc")
    with place.open() as file:
        server.client().delete_object(Bucket=BUCKET, Key="small")
        with pytest.raises(DataError, match=f"s3://{BUCKET}/small: cannot be read: no such file"):
            file.read()
    assert server.pauses == []


def test_the_answer_of_a_busy_server_that_is_longer_than_the_file(server):
    place = put(server, "small", b"abc")
    server.inject("slow_down", method="GET", part="small", times=2)
    assert place.read() == b"abc"
    assert server.injected == {"slow_down": 2}
    assert len(server.pauses) == 2


def test_rights_that_end_while_a_small_file_is_read(server):
    place = put(server, "small", b"abc")
    with place.open() as file:
        server.inject("denied", part="small")
        with pytest.raises(DataError, match=f"s3://{BUCKET}/small: cannot be read: access is refused"):
            file.read()
    assert server.injected == {"denied": 2}
    assert server.pauses == []


def test_no_credentials(server, monkeypatch, tmp_path):
    place = put(server, "small", b"abc")
    for name in CREDENTIALS:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(DataError, match="small: cannot be read: access is refused, and no credentials are in"):
        place.read()
    assert server.pauses == []


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("denied", "access is refused; .* must allow s3:ListBucket"),
        ("moved", "the bucket is in another region; set AWS_REGION"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_what_a_refusal_means(server, kind, message, method):
    place = put(server, "small", bytes(10_000))
    server.inject(kind, method=method)
    with pytest.raises(DataError, match=f"s3://{BUCKET}/small: cannot be read: {message}") as refusal:
        place.read()
    assert server.injected == {kind: 1}
    assert server.pauses == []
    assert not any(secret in str(refusal.value) for secret in CREDENTIALS.values())


def test_an_empty_part_of_a_key(server):
    with pytest.raises(DataError, match=f"s3://{BUCKET}//key: cannot be looked up: .*Empty path component"):
        LOCAL.place(f"s3://{BUCKET}//key").facts()


# Processes -------------------------------------------------------------------------------------------------------

CHILD = """
import pickle, sys
place = pickle.loads(sys.stdin.buffer.read())
(place.parent / "copy").write(place.read())
"""


def test_a_place_works_in_another_process(server, monkeypatch):
    place = put(server, "small", b"abc")
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    there = Storage(s3_endpoint=server.endpoint).place(place.uri)
    subprocess.run([sys.executable, "-c", CHILD], input=pickle.dumps(there), check=True, timeout=60)
    assert stored(server, "copy") == b"abc"


FORK = """
import os
from sparknet.data.storage.place import LOCAL
place = LOCAL.place("s3://pictures/big")
first = place.read()
child = os.fork()
if child == 0:
    same = place.read() == first
    (place.parent / "copy").write(first)
    os._exit(0 if same else 1)
assert os.waitpid(child, 0)[1] == 0
assert place.read() == first
"""


def test_a_forked_child_reads_and_writes(server, big):
    put(server, "big", big)
    subprocess.run([sys.executable, "-c", FORK], check=True, timeout=60)
    assert digest(stored(server, "copy")) == digest(big)


# Readers ---------------------------------------------------------------------------------------------------------


def upload(server, directory, prefix):
    for path in directory.rglob("*"):
        if path.is_file():
            put(server, f"{prefix}/{path.relative_to(directory)}", path.read_bytes())


def rows_of(module, units):
    return pixels_and_labels(module, [batch for unit in units for batch in module.read(unit, LOCAL)])


def assert_rows(module, units, expected):
    for found, wanted in zip(rows_of(module, units), expected, strict=True):
        np.testing.assert_array_equal(found.reshape(len(found), -1), wanted.reshape(len(wanted), -1))


def break_now_and_then(server):
    for number, kind in enumerate(("500", "slow_down", "cut", "lost")):
        server.inject(kind, probability=0.12, seed=number)


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("inside", ["", "cifar-10-batches-bin/"])
def test_cifar_directory(server, tmp_path, split, inside):
    train, test = cifar_directory(tmp_path / inside)
    upload(server, tmp_path, "cifar")
    break_now_and_then(server)
    units = partitions(cifar10, f"s3://{BUCKET}/cifar", split=split)
    assert_rows(cifar10, units, {"train": train, "test": test}[split])
    assert sum(server.injected.values()) >= 1


def test_a_large_cifar_file_in_several_units(server, tmp_path):
    rows = random_rows(11_000, (3, 32, 32))
    put(server, "cifar/big.bin", write_cifar(tmp_path / "big.bin", *rows).read_bytes())
    server.inject("cut", times=4, method="GET", part="big.bin")
    for path in ("cifar/big.bin", "cifar/*.bin", "cifar/b?g.bin"):
        units = partitions(cifar10, f"s3://{BUCKET}/{path}")
        assert [unit.stop - unit.start for unit in units] == [3666, 3667, 3667]
    assert_rows(cifar10, units, rows)
    assert server.injected == {"cut": 4}
    assert min(last - first + 1 for first, last in server.ranges("big.bin")) >= 8 * MB


@pytest.mark.parametrize("zipped", [False, True])
def test_mnist(server, tmp_path, zipped):
    rows = random_rows(41_000, (1, 28, 28))
    file = write_mnist(tmp_path, "train", *rows, zipped=zipped)
    upload(server, tmp_path, "mnist")
    break_now_and_then(server)
    for path in ("mnist", f"mnist/{file.name}", "mnist/train-*"):
        units = partitions(mnist, f"s3://{BUCKET}/{path}")
        assert len(units) == (1 if zipped else 3)
    assert_rows(mnist, units, rows)
    assert sum(server.injected.values()) >= 1


def test_a_source_is_known_again_by_its_listing(server, tmp_path):
    cifar_directory(tmp_path)
    upload(server, tmp_path, "cifar")
    path = f"s3://{BUCKET}/cifar"
    described = describe_files(opened(cifar10, path).files)
    assert [entry[0] for entry in described] == [f"{path}/data_batch_{number}.bin" for number in (1, 2, 3)]
    assert all(entry[1] == 20 * 3073 and entry[2] for entry in described)
    assert describe_files(opened(cifar10, path).files) == described
    put(server, "cifar/data_batch_2.bin", bytes(3073))
    assert describe_files(opened(cifar10, path).files) != described


def test_nothing_there(server):
    put(server, "empty/readme.txt", b"x")
    with pytest.raises(DataError, match=r"the directory has no CIFAR-10 train batches .*set data\.path"):
        partitions(cifar10, f"s3://{BUCKET}/empty")
    with pytest.raises(DataError, match=r"none\*\.bin: no such file, directory or glob match; correct data\.path"):
        partitions(cifar10, f"s3://{BUCKET}/empty/none*.bin")
