"""Storage without a server: local files, URIs, what is tried again and what is not, what is said to people."""

import errno
import io
import os
import pickle
import subprocess
import sys
import threading

import pyarrow as pa
import pyarrow.fs as arrow_fs
import pytest

from sparknet.data.storage import arrow_systems, place, retry
from sparknet.data.storage.place import LOCAL, Facts, Storage
from sparknet.data.storage.remedies import Cut, explain, is_transient
from sparknet.data.storage.remote_file import READ_AHEAD_BYTES, RemoteFile
from sparknet.data.storage.retry import retried
from sparknet.errors import DataError


def names(directory):
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


def test_storage_loads_no_image_library():
    """A task that only moves bytes, and every import of `sparknet.data`, would pay for OpenCV."""
    program = (
        "import sys, sparknet.data, sparknet.data.storage.place; print({'cv2', 'simplejpeg'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout == "set()\n"


# Places ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "name", "parent"),
    [
        ("s3://bucket/a/b.bin", "b.bin", "s3://bucket/a"),
        ("s3://bucket/a/", "a", "s3://bucket"),
        ("s3://bucket", "bucket", "s3://bucket"),
        ("s3a://bucket/a", "a", "s3a://bucket"),
        ("s3://bucket/100%25 #?", "100%25 #?", "s3://bucket"),
        ("hdfs://name:8020/a/b", "b", "hdfs://name:8020/a"),
        ("hdfs://user@name/a@b", "a@b", "hdfs://user@name"),
        ("hdfs:///a", "a", "hdfs:///"),
        ("hdfs://name", "name", "hdfs://name"),
    ],
)
def test_parts_of_a_remote_uri(uri, name, parent):
    place = LOCAL.place(uri)
    assert (place.uri, place.local, place.name, place.parent.uri) == (uri.rstrip("/"), None, name, parent)
    assert str(place) == place.uri
    assert place.parent / name == place or place.parent == place


def test_local_places_are_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for uri in ("a b/c", str(tmp_path / "a b" / "c"), (tmp_path / "a b" / "c").as_uri(), f"file:{tmp_path}/a b/c"):
        place = LOCAL.place(uri)
        assert place.local == tmp_path / "a b" / "c"
        assert place.uri == str(place.local)
        assert (place.name, place.parent) == ("c", LOCAL.place("a b"))


def test_places_travel_and_compare():
    place = Storage(s3_endpoint="http://127.0.0.1:9000").place("s3://bucket/key")
    assert pickle.loads(pickle.dumps(place)) == place
    assert place != LOCAL.place("s3://bucket/key")


@pytest.mark.parametrize(
    "uri",
    [
        "s3://AKIAKEY:hunter2@bucket/key",
        "s3://AKIAKEY:hun/ter2@bucket/key",
        "s3://hunter2@bucket/key",
        "s3a://AKIAKEY:hunter2@bucket",
        "hdfs://me:hunter2@name/a",
        "hdfs://me:hunter2/x@name/a",
        "abfss://:hunter2@account.blob.core.windows.net/a",
    ],
)
def test_credentials_in_a_uri_are_refused_and_not_repeated(uri):
    with pytest.raises(DataError, match="credentials never stand in a URI") as refusal:
        LOCAL.place(uri)
    assert not any(word in str(refusal.value) for word in ("AKIA", "hun", "ter2", "me:"))


@pytest.mark.parametrize("uri", ["s3://", "s3:///key", "s3://buck et/key", "s3://-b/k"])
def test_a_uri_without_a_bucket(uri):
    with pytest.raises(DataError, match="no bucket's name: write s3://BUCKET/KEY"):
        LOCAL.place(uri)


def test_an_empty_path():
    with pytest.raises(DataError, match=r"path is empty; name a file, .*: set data\.path"):
        LOCAL.place("")


@pytest.mark.parametrize(
    "url", ["127.0.0.1:9000", "ftp://host", "http://", "http://host/path", "http://host:x", "http://[bad"]
)
def test_an_endpoint_that_is_no_url(url):
    with pytest.raises(DataError, match=r"it must be http://HOST\[:PORT\] .*set data\.s3_endpoint"):
        Storage(s3_endpoint=url)


def test_credentials_in_an_endpoint_are_refused_and_not_repeated():
    with pytest.raises(DataError, match=r"data\.s3_endpoint") as refusal:
        Storage(s3_endpoint="https://me:hunter2@host")
    assert "hunter2" not in str(refusal.value)


def test_an_unknown_scheme():
    with pytest.raises(DataError, match="ftp://host/: scheme ftp is not known to Arrow; use"):
        LOCAL.place("ftp://host/a").facts()


# Local files -----------------------------------------------------------------------------------------------------


def test_write_read_and_facts(tmp_path):
    place = LOCAL.place(str(tmp_path)) / "new" / "file.bin"
    assert place.facts() is None
    place.write(b"0123456789")
    place.write(b"abcdefghij")
    status = (tmp_path / "new" / "file.bin").stat()
    assert place.facts() == Facts(uri=place.uri, name="file.bin", bytes=10, modified_ns=status.st_mtime_ns)
    assert status.st_mode & 0o777 == 0o666 & ~_umask()
    assert place.read() == b"abcdefghij"
    assert place.read_range(2, 3) == b"cde"
    assert place.read_range(10, 0) == b""
    with place.open() as file:
        file.seek(-2, os.SEEK_END)
        assert file.read() == b"ij"
    directory = place.parent.facts()
    assert directory
    assert (directory.is_directory, directory.bytes) == (True, 0)
    assert names(tmp_path) == ["new", "new/file.bin"]


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize(("start", "size", "end"), [(8, 3, 10), (0, 11, 10), (20, 1, 20)])
def test_a_range_past_the_end_names_file_and_offset(tmp_path, start, size, end):
    (tmp_path / "f").write_bytes(bytes(10))
    with pytest.raises(DataError, match=rf"f: ends at byte {end}, {size} bytes from {start} are needed; .*again"):
        LOCAL.place(str(tmp_path / "f")).read_range(start, size)


def test_missing_files(tmp_path):
    place = LOCAL.place(str(tmp_path / "nothing"))
    for read in (place.read, place.open, lambda: place.read_range(0, 1)):
        with pytest.raises(DataError, match=r"nothing: cannot be read: no such file; .*every worker reaches it"):
            read()
    assert place.children() == []
    place.delete()
    with pytest.raises(DataError, match="cannot be read: Is a directory; check"):
        LOCAL.place(str(tmp_path)).read()


def test_children_are_files_sorted_by_name(tmp_path):
    for name in ("b.bin", "a.bin", "C.BIN", "x.txt", "below/z.bin", "below/deeper/a.bin"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"12")
    place = LOCAL.place(str(tmp_path))
    assert [child.name for child in place.children("*.bin")] == ["a.bin", "b.bin"]
    assert [child.name for child in place.children()] == ["C.BIN", "a.bin", "b.bin", "x.txt"]
    found = place.files("*.bin", recursive=True)
    assert [file.uri for file in found] == [
        str(tmp_path / name) for name in ("a.bin", "b.bin", "below/deeper/a.bin", "below/z.bin")
    ]
    assert {file.bytes for file in found} == {2}


def test_delete(tmp_path):
    for name in ("file", "directory/a/b", "kept/c"):
        (LOCAL.place(str(tmp_path)) / name).write(b"1")
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    for name in ("file", "directory", "link", "link", "never"):
        (LOCAL.place(str(tmp_path)) / name).delete()
    assert names(tmp_path) == ["kept", "kept/c"]


@pytest.mark.parametrize("uri", ["s3://bucket", "/"])
def test_a_whole_bucket_is_not_deleted(uri):
    with pytest.raises(DataError, match="a whole bucket or file system is not removed"):
        LOCAL.place(uri).delete()


def write_and_raise(place, error):
    with place.writing() as file:
        file.write(b"half")
        raise error


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt(), FileNotFoundError(2, "another file")])
def test_nothing_is_left_of_a_local_file_that_failed(tmp_path, error):
    place = LOCAL.place(str(tmp_path / "f"))
    place.write(b"before")
    with pytest.raises(type(error)) as raised:
        write_and_raise(place, error)
    assert raised.value is error
    assert place.read() == b"before"
    assert names(tmp_path) == ["f"]


def test_a_full_disk_names_the_file(tmp_path):
    place = LOCAL.place(str(tmp_path / "f"))
    with pytest.raises(DataError, match=r"f: cannot be written: No space left.*; free space"), place.writing():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert names(tmp_path) == []


def test_a_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "f").write_bytes(b"")
    with pytest.raises(DataError, match=r"f/g: cannot be written: (Not a directory|File exists); name a place"):
        LOCAL.place(str(tmp_path / "f" / "g")).write(b"1")


# What is tried again ---------------------------------------------------------------------------------------------

# As Arrow 26 words them; test_storage_s3.py provokes them.
TRANSIENT = [
    "AWS Error INTERNAL_FAILURE during GetObject operation: injected",
    "When getting information for key 'k' in bucket 'b': AWS Error UNKNOWN (HTTP status 500) during HeadObject",
    "When getting information for key 'k' in bucket 'b': AWS Error UNKNOWN (HTTP status 503) during HeadObject",
    "AWS Error UNKNOWN (HTTP status 429) during GetObject operation: Unable to parse ExceptionName",
    "AWS Error SERVICE_UNAVAILABLE during GetObject operation: ",
    "When listing objects under key '' in bucket 'b': AWS Error SLOW_DOWN during ListObjectsV2 operation: injected",
    "AWS Error NETWORK_CONNECTION during GetObject operation: curlCode: 18, Transferred a partial file",
    "AWS Error NETWORK_CONNECTION during GetObject operation: curlCode: 28, Timeout was reached",
    "AWS Error REQUEST_TIMEOUT during GetObject operation: injected",
    "AWS Error NO_SUCH_UPLOAD during CompleteMultipartUpload operation: gone",
]
FINAL = {
    "AWS Error ACCESS_DENIED during HeadObject operation: No response body.": "access is refused",
    "AWS Error UNKNOWN (HTTP status 403) during HeadObject operation: x": "access is refused",
    "AWS Error NO_SUCH_BUCKET during CreateMultipartUpload operation: x": "no such bucket; correct the URI",
    "AWS Error UNKNOWN (HTTP status 301) during HeadObject operation: x": "in another region; set AWS_REGION",
    "AWS Error UNKNOWN (HTTP status 400) during GetObject: AuthorizationHeaderMalformed": "set AWS_REGION",
    "AWS Error UNKNOWN (HTTP status 400) during GetObject operation: ExpiredToken": "not accepted; renew them",
    "AWS Error INVALID_ACCESS_KEY_ID during GetObject operation: x": "not accepted; renew them",
    "AWS Error SIGNATURE_DOES_NOT_MATCH during GetObject operation: x": "not accepted; renew them",
    "AWS Error UNKNOWN (HTTP status 400) during HeadObject operation: No response": "or the bucket is in ano",
    "AWS Error REQUEST_TIME_TOO_SKEWED during GetObject operation: x": "clock is wrong.*; set the clock",
    "something nobody has seen": "check that every worker reaches it (something nobody has seen",
}


@pytest.mark.parametrize("text", TRANSIENT)
def test_transient_errors(text):
    assert is_transient(OSError(text))
    assert "try again later" in explain(OSError(text))


@pytest.mark.parametrize("text", FINAL)
def test_final_errors_say_what_to_do(text):
    assert not is_transient(OSError(text))
    said = explain(OSError(text + "\nsecond line"))
    assert "\n" not in said
    for part in FINAL[text].split(".*"):
        assert part in said


@pytest.mark.parametrize(
    ("error", "transient"),
    [
        (Cut("3 of 4 bytes"), True),
        (ConnectionResetError(errno.ECONNRESET, "reset"), True),
        (TimeoutError(), True),
        (FileNotFoundError(errno.ENOENT, "HTTP status 503"), False),
        (PermissionError(errno.EACCES, "denied"), False),
        (OSError(errno.ENOSPC, "AWS Error SLOW_DOWN"), False),
    ],
)
def test_errors_by_type(error, transient):
    assert is_transient(error) is transient


def test_no_credentials_and_refused_credentials_differ(monkeypatch, tmp_path):
    denied = OSError("AWS Error ACCESS_DENIED during HeadObject operation")
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert "no credentials are in the environment or in a profile; set AWS_ACCESS_KEY_ID" in explain(denied)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    assert "must allow s3:ListBucket, s3:GetObject" in explain(denied)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "credentials").write_text("[default]")
    assert "must allow s3:ListBucket, s3:GetObject" in explain(denied)


def test_backoff_doubles_up_to_a_bound_with_full_jitter(monkeypatch):
    calls, pauses = [], []

    def fail():
        calls.append(1)
        raise Cut("x")

    monkeypatch.setattr(retry, "pause", pauses.append)
    monkeypatch.setattr(retry, "draw", lambda: 1.0)
    monkeypatch.setattr(retry, "ATTEMPTS", 9)
    with pytest.raises(Cut):
        retried(fail)
    assert len(calls) == 9
    assert pauses == [0.25, 0.5, 1, 2, 4, 8, 8, 8]
    pauses.clear()
    monkeypatch.setattr(retry, "draw", iter([0.0, 0.5, 0.9]).__next__)
    monkeypatch.setattr(retry, "ATTEMPTS", 4)
    with pytest.raises(Cut):
        retried(fail)
    assert pauses == [0, 0.25, 0.9]


def test_backoff_ends_at_success_and_at_final_errors(monkeypatch):
    pauses = []
    monkeypatch.setattr(retry, "pause", pauses.append)
    answers = iter([Cut("a"), Cut("b"), 7])

    def act():
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert retried(act) == 7
    assert len(pauses) == 2
    answers = iter([FileNotFoundError(2, "no"), 7])
    with pytest.raises(FileNotFoundError):
        retried(act)
    assert len(pauses) == 2


# Remote files, with a file in place of a server ------------------------------------------------------------------


class Ranges:
    """In place of Arrow's file: notes each range, gives what `spoil` makes of it."""

    def __init__(self, data, spoil=lambda data: data):
        self.data, self.spoil, self.asked = data, spoil, []

    def size(self):
        return len(self.data)

    def read_at(self, size, start):
        self.asked.append((start, size))
        return self.spoil(self.data[start : start + size])

    def close(self):
        self.asked.append("closed")


def test_small_reads_are_served_from_pieces_of_8_mb():
    data = os.urandom(20 << 20)
    source = Ranges(data)
    with io.BufferedReader(RemoteFile(source, run=retried), READ_AHEAD_BYTES) as file:
        read = b"".join(iter(lambda: file.read(100_003), b""))
        file.seek(5)
        assert file.read(3) == data[5:8]
    mb = 1 << 20
    assert read == data
    assert source.asked == [(0, 8 * mb), (8 * mb, 8 * mb), (16 * mb, 4 * mb), (5, 8 * mb), "closed"]


def test_large_reads_take_32_mb_at_a_time():
    data = bytes(70 << 20)
    source = Ranges(data)
    mb = 1 << 20
    file = RemoteFile(source, run=retried)
    assert file.readall() == data
    assert source.asked == [(0, 32 * mb), (32 * mb, 32 * mb), (64 * mb, 6 * mb)]


def test_seeks():
    file = RemoteFile(Ranges(b"0123456789"), run=retried)
    assert (file.seek(3), file.seek(2, os.SEEK_CUR), file.tell(), file.seek(-1, os.SEEK_END)) == (3, 5, 5, 9)
    assert (file.read(5), file.read(5), file.readall()) == (b"9", b"", b"")
    assert (file.seek(20), file.read(1), file.readall()) == (20, b"", b"")
    with pytest.raises(ValueError, match="an offset is 0 or more"):
        file.seek(-1)


def test_a_short_body_is_asked_for_again(monkeypatch):
    monkeypatch.setattr(retry, "pause", lambda seconds: None)
    left = iter([3, 0, 10])
    source = Ranges(b"0123456789", spoil=lambda data: data[: next(left)])
    file = RemoteFile(source, run=retried)
    assert file.take(0, 10) == b"0123456789"
    assert source.asked == [(0, 10)] * 3


@pytest.fixture
def remote(tmp_path, monkeypatch):
    """`hdfs://name/...` kept in a directory: Arrow's file system of a kind that shows files while they grow."""
    kept = tmp_path / "hdfs"
    kept.mkdir()
    system = arrow_fs.SubTreeFileSystem(str(kept), arrow_fs.LocalFileSystem())
    monkeypatch.setattr(arrow_systems, "_other", lambda root, process: (system, "/"))
    return kept


def test_a_file_system_that_shows_growing_files_gets_a_temporary_name_and_a_rename(remote):
    place = LOCAL.place("hdfs://name/f")
    place.write(b"one")
    with place.writing() as file:
        file.write(b"tw")
        file.write(b"o")
        assert names(remote) == ["f"]
    assert (remote / "f").read_bytes() == place.read() == b"two"
    with place.writing():
        pass
    facts = place.facts()
    assert facts
    assert facts.bytes == 0
    assert names(remote) == ["f"]


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt()])
def test_nothing_is_left_of_a_remote_file_that_failed(remote, error):
    with pytest.raises(type(error)):
        write_and_raise(LOCAL.place("hdfs://name/f"), error)
    assert names(remote) == []


def test_nothing_is_left_of_an_upload_that_broke(remote, monkeypatch):
    monkeypatch.setattr(place, "_unless_missing", lambda remove, path: remove(path))
    with pytest.raises(DataError, match="hdfs://name/f: cannot be written: no such file"):
        LOCAL.place("hdfs://name/f").write(b"1")  # it removes the old file, which is not there
    assert names(remote) == []


def test_remote_directories(remote):
    root = LOCAL.place("hdfs://name/d")
    for name in ("b", "a", "below/c"):
        (root / name).write(name.encode())
    assert [child.uri for child in root.children(recursive=True)] == [
        f"hdfs://name/d/{name}" for name in ("a", "b", "below/c")
    ]
    root.delete()
    assert names(remote) == []


def test_an_upload_runs_where_an_interrupt_cannot_cut_it(remote, monkeypatch):
    threads = []
    upload = place._upload_once

    def noted(place, data):
        threads.append(threading.current_thread())
        upload(place, data)

    monkeypatch.setattr(place, "_upload_once", noted)
    LOCAL.place("hdfs://name/f").write(b"1")
    assert threads
    assert threads[0] is not threading.main_thread()


def test_arrows_own_refusals_name_the_place(remote, monkeypatch):
    def refuse(path):
        raise pa.ArrowInvalid("Empty path component in path bucket//key")

    monkeypatch.setattr(
        arrow_systems, "_other", lambda root, process: (type("S", (), {"get_file_info": refuse}), "")
    )
    with pytest.raises(DataError, match=r"hdfs://name//x: cannot be looked up: .*Empty path component"):
        LOCAL.place("hdfs://name//x").facts()
