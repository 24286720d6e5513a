"""What names a run directory: a path, or a URI of a store; nothing else becomes a directory of a strange name."""

from pathlib import Path

import pytest

from sparknet.errors import UsageError
from sparknet.training.run_files.run_place import run_place


@pytest.mark.parametrize("where", ["runs/first", "exp:1/run", "C:x", "/runs/a b", Path("runs/first")])
def test_paths_stay_what_they_are(where):
    assert run_place(where).local == Path(where).absolute()


def test_a_file_uri_is_a_path():
    assert run_place("file:///runs/a%20b").local == Path("/runs/a b")


@pytest.mark.parametrize(
    "uri", ["s3://bucket/runs/1", "s3a://bucket/x", "hdfs://host:8020/x", "gs://b/x", "abfs://b@a/x"]
)
def test_uris_of_stores_are_no_paths(uri):
    place = run_place(uri)
    assert place.local is None
    assert place.uri == uri


def test_a_slash_behind_changes_nothing():
    assert run_place("s3://bucket/run/").uri == "s3://bucket/run"


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("s3:bucket/run", r"'s3:bucket/run'; .*two slashes: write s3://bucket/run"),
        (Path("s3://bucket/run"), r"write s3://bucket/run"),
        ("http://host/run", r"a http:// URI; it must be a path, file:, s3://"),
        ("dbfs://x/run", r"a dbfs:// URI; .*name one of these"),
        ("", r"the run directory is empty"),
        ("s3:///run", r"whose bucket is no bucket's name"),
        ("s3://key:secret@bucket/run", r"credentials never stand in a URI"),
        ("file://host/run", r"names a host 'host'"),
    ],
)
def test_anything_else_is_refused_with_the_rule_and_the_remedy(where, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=words) as caught:
        run_place(where)
    assert "secret" not in str(caught.value)
    assert not list(tmp_path.iterdir())
