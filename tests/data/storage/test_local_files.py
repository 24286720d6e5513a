"""What paths and `file:` URIs name, and what a directory holds."""

import os
import socket
from pathlib import Path

import pytest

from sparknet.data.sources.files import find_files, local_path
from sparknet.data.storage.local_files import files_in, path_of
from sparknet.data.storage.place import LOCAL
from sparknet.errors import DataError


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("file:///a/b", "/a/b"),
        ("FILE:/a/b", "/a/b"),
        ("file://localhost/a/b", "/a/b"),
        ("file:///a%20b/%C3%A9", "/a b/é"),
        ("file:///a/part-?.tar", "/a/part-?.tar"),
        ("file:///a/x#1.tar", "/a/x#1.tar"),
        ("/a%20b?#", "/a%20b?#"),
        ("a:b", "a:b"),
    ],
)
def test_what_a_path_or_uri_names(uri, path):
    assert path_of(uri) == local_path(uri) == Path(path)
    assert LOCAL.place(uri).local == Path(path).absolute()


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("file://data/x", r"names a host 'data'; a file: URI is of this machine: write file:///data/x"),
        ("file:", r"file:: names no path; write file:///PATH"),
        ("file://", r"file://: names no path"),
        ("~nobody-of-this-name/x", r"~nobody-of-this-name/x: there is no such user with a home directory"),
        ("/a/\udce9.tar", r"'/a/\\udce9\.tar': the name is not UTF-8, .*: rename it"),
    ],
)
def test_what_names_nothing_is_refused(uri, words):
    for ask in (path_of, local_path, LOCAL.place):
        with pytest.raises(DataError, match=words):
            ask(uri)


def listed(directory, **options):
    return sorted(name for name, _ in files_in(directory, **{"recursive": True, **options}))


def test_files_of_a_directory_and_below(tmp_path):
    for name in ("b", "a/c", "a/d/é ?#%20", ".hidden/x"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    assert listed(tmp_path) == [".hidden/x", "a/c", "a/d/é ?#%20", "b"]
    assert listed(tmp_path, recursive=False) == ["b"]
    facts = dict(files_in(tmp_path, recursive=True))
    assert facts["a/c"].st_size == 3
    for file in LOCAL.place(str(tmp_path)).files(recursive=True):
        assert file == LOCAL.place(file.uri).facts()  # a listing and a look at a file say the same


def test_a_missing_directory_has_no_files_and_a_file_is_no_directory(tmp_path):
    assert listed(tmp_path / "absent") == []
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        listed(tmp_path / "file")
    with pytest.raises(DataError, match=r"file: cannot be listed: Not a directory"):
        LOCAL.place(str(tmp_path / "file")).files()


def test_links_are_followed_but_not_to_a_directory_above(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").touch()
    (tmp_path / "b").symlink_to("a")
    (tmp_path / "y").symlink_to("a/x")
    (tmp_path / "broken").symlink_to("nothing")
    assert listed(tmp_path) == ["a/x", "b/x", "y"]
    (tmp_path / "a" / "up").symlink_to("..")
    with pytest.raises(DataError, match=rf"{tmp_path}/[ab]/up: is a link to {tmp_path}, which it lies in itself: "):
        listed(tmp_path)
    assert listed(tmp_path, recursive=False) == ["y"]


def test_what_is_no_regular_file_is_left_out(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(tmp_path / "socket"))
        assert listed(tmp_path) == []


def test_names_that_are_not_utf_8_are_refused(tmp_path):
    (tmp_path / os.fsdecode(b"\xe9.tar")).touch()
    for look in (lambda: LOCAL.place(str(tmp_path)).files(), lambda: find(tmp_path), lambda: find(tmp_path / "*")):
        with pytest.raises(DataError, match=r"\\udce9\.tar': the name is not UTF-8"):
            look()


def find(path, pattern="*.tar"):
    return [file.name for file in find_files(str(path), in_directory=[pattern], what="tar files")]


def test_brackets_in_the_name_of_a_directory_are_no_glob(tmp_path):
    directory = tmp_path / "set[1]" / "more*"
    directory.mkdir(parents=True)
    (directory / "x.tar").touch()
    (directory / "._x.tar").touch()  # by macOS; hidden, as in a shell
    assert find(directory) == find(tmp_path / "set[1]", "more*/*.tar") == ["x.tar"]
    assert find(directory, ".*.tar") == ["._x.tar"]


def test_a_glob_in_a_file_uri(tmp_path):
    for name in ("part-1.tar", "part-2.tar", "part-10.tar"):
        (tmp_path / name).touch()
    assert find(f"file://{tmp_path}/part-?.tar") == ["part-1.tar", "part-2.tar"]
