"""A row that is at fault is told once, in words: no task is tried again for it, whoever finds the fault."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from digits import open_test_session
from sparknet.config import Data
from sparknet.data.sources.opening import open_source
from sparknet.errors import DataError
from sparknet.spark.preparing.convert import to_lmdb, to_parquet
from sparknet.spark.preparing.prepare import prepare

pytestmark = pytest.mark.spark


@pytest.fixture(scope="module")
def spark():
    """A session that would try a task four times."""
    session = open_test_session("local[2,4]")
    yield session
    session.stop()


@pytest.fixture
def failed(spark):
    """How many tasks have failed since."""
    context = spark.sparkContext
    tracker = context.statusTracker()
    before = set(tracker.getJobIdsForGroup())

    def count():
        context._jsc.sc().listenerBus().waitUntilEmpty()
        jobs = [tracker.getJobInfo(job) for job in set(tracker.getJobIdsForGroup()) - before]
        stages = [tracker.getStageInfo(stage) for job in jobs if job for stage in job.stageIds]
        assert stages
        return sum(stage.numFailedTasks for stage in stages if stage)

    return count


def table(path, **columns):
    pq.write_table(pa.table(columns), path)
    return str(path)


def csv(path, text):
    path.write_text(text)
    return str(path)


def cases(tmp_path):
    train = table(tmp_path / "train.parquet", x=[1.0, 2.0, 3.0, 4.0], y=["no", "yes", "no", "yes"])
    held, columns = {"validation_fraction": 0.25}, {"image": "x", "label": "y"}
    return {
        "a label beyond the classes": (
            Data(
                source="parquet",
                path=table(tmp_path / "a", x=[1.0] * 4, y=[0, 1, 2, 1]),
                classes=2,
                **columns,
                **held,
            ),
            "row 2 has label 2; labels must be 0 to 1",
        ),
        "a label that is null": (
            Data(
                source="parquet",
                path=table(tmp_path / "b", x=[1.0] * 4, y=[0, 1, None, 1]),
                **columns,
                **held,
            ),
            "row 2 .*null",
        ),
        "a word that training does not know": (
            Data(
                source="parquet",
                path=train,
                image="x",
                label="y",
                validation_path=table(tmp_path / "c", x=[1.0], y=["perhaps"]),
            ),
            "says 'perhaps'; the training rows say no, yes",
        ),
        "a feature that is no number": (
            Data(
                source="parquet",
                path=table(tmp_path / "d", n=[1.0, float("nan"), 3.0, 4.0], y=[0, 1, 0, 1]),
                features=("n",),
                label="y",
                **held,
            ),
            "column n: row 1 .*is NaN",
        ),
        "a line of another width": (
            Data(
                source="csv",
                path=csv(tmp_path / "e.csv", "x,y\n1,0\n2,1,9\n3,0\n"),
                features=("x",),
                label="y",
                **held,
            ),
            "the line '2,1,9' has not 2 values",
        ),
    }


NAMES = [
    "a label beyond the classes",
    "a label that is null",
    "a word that training does not know",
    "a feature that is no number",
    "a line of another width",
]


@pytest.mark.parametrize("name", NAMES)
def test_preparing(spark, failed, tmp_path, name):
    data, message = cases(tmp_path)[name]
    with pytest.raises(DataError, match=message):
        prepare(spark, data, store=tmp_path / "store", seed=0)
    assert failed() == 0


def test_a_file_that_is_damaged_beyond_its_rows(spark, failed, tmp_path):
    (tmp_path / "data_batch_1.bin").write_bytes(b"\xff" * 3073)
    data = Data(source="cifar10", path=str(tmp_path), validation_fraction=0.5)
    message = "data_batch_1.bin: row 0 has label 255"
    with pytest.raises(DataError, match=message):
        prepare(spark, data, store=tmp_path / "store", seed=0)
    for write in (
        lambda: to_lmdb(spark, open_source(data), data, str(tmp_path / "db"), partitions=1),
        lambda: to_parquet(spark, open_source(data), data, str(tmp_path / "table"), keys=1),
    ):
        with pytest.raises(DataError, match=message):
            write()
    assert failed() == 0


def test_a_row_that_parquet_cannot_take(spark, failed, tmp_path):
    data, message = cases(tmp_path)["a label beyond the classes"]
    with pytest.raises(DataError, match=message):
        to_parquet(spark, open_source(data), data, str(tmp_path / "table"), keys=1)
    assert failed() == 0
    assert not (tmp_path / "table").exists()
