"""A whole run looks at its source once: from the command line to the last round, each tree is listed one time."""

from collections import Counter

import pytest

from digits import open_test_session
from image_files import write_folder
from sparknet.cli.main import main
from sparknet.data.storage.place import Place

pytestmark = pytest.mark.spark


@pytest.fixture(scope="module")
def spark():
    session = open_test_session("local[2,4]")
    yield session
    session.stop()


def test_a_run_lists_each_tree_once(spark, tmp_path, monkeypatch):
    for side in ("train", "val"):
        write_folder(tmp_path / side, {"a": ["1.jpg", "2.jpg", "3.jpg"], "b": ["1.jpg", "2.jpg"]})
    (tmp_path / "run.toml").write_text(f"""
        [run]
        rounds = 2
        workers = 2
        [data]
        source = "image_folder"
        path = "{tmp_path / "train"}"
        validation_path = "{tmp_path / "val"}"
        resize = [8, 8]
        [net]
        name = "digits_cnn"
        [sync]
        local_steps = 1
        [solver]
        batch_size = 2
    """)
    listed, files = Counter(), Place.files

    def record(place, *arguments, **options):
        listed[place.uri] += 1
        return files(place, *arguments, **options)

    monkeypatch.setattr(Place, "files", record)
    assert main(["train", str(tmp_path / "run.toml"), "--run-dir", str(tmp_path / "run")]) == 0
    assert listed == {str(tmp_path / "train"): 1, str(tmp_path / "val"): 1}
    listed.clear()
    # The model of a run is tested on other rows, whose classes the training images number.
    assert main(["test", str(tmp_path / "run"), "--data", str(tmp_path / "val")]) == 0
    assert listed == {str(tmp_path / "train"): 1, str(tmp_path / "val"): 1}
