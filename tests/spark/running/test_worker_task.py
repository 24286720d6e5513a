"""What a worker opens is closed at its end, however it ends: Spark uses its process again."""

import pytest

from sparknet.config import Data, Net, Run, RunConfig
from sparknet.data.loading.transform import Normalise
from sparknet.errors import DataError
from sparknet.spark.running import worker_task
from sparknet.spark.running.driver_client import DriverAddress
from sparknet.spark.running.worker_task import WorkerPlan, train_as
from sparknet.training.coordination.messages import Register
from sparknet.training.objectives.preprocessing import Preprocessing

PLAIN = Normalise(mean=None, scale=1.0)


class Client:
    """A driver that only listens."""

    def __init__(self, address, **_):
        self.told = []

    def tell(self, message):
        self.told.append(message)

    def close(self):
        pass


class Beats:
    driver_lost = False

    def __init__(self, *_):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


class Groups:
    def __init__(self, *_, **__):
        pass

    def abort(self, epoch):
        pass


class Tables:
    """Notes when it is closed."""

    def __init__(self, notes):
        self.notes = notes

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.notes.append("closed")


@pytest.mark.parametrize("error", [None, DataError("a shard is gone"), RuntimeError("out of luck")])
def test_tables_are_closed_after_the_worker(monkeypatch, error):
    notes = []

    class Worker:
        phase = "training"

        def run(self):
            notes.append("ran")
            if error is not None:
                raise error

    def prepare(plan, who, *, tables, **_):
        tables.enter_context(Tables(notes))
        return Worker()

    for name, replacement in (("DriverClient", Client), ("Heartbeats", Beats), ("Groups", Groups)):
        monkeypatch.setattr(worker_task, name, replacement)
    monkeypatch.setattr(worker_task, "_prepare", prepare)
    config = RunConfig(
        data=Data(source="digits", validation_fraction=0.2), net=Net(name="digits_cnn"), run=Run(rounds=1)
    )
    plan = WorkerPlan(
        config=config,
        driver=DriverAddress(uri="grpc://127.0.0.1:1", token="t"),
        data_dir="/nowhere",
        rounds=1,
        preprocessing=Preprocessing(train=PLAIN, test=PLAIN),
    )
    who = Register(slot=0, attempt=0, host="here", pid=1)
    if isinstance(error, RuntimeError):
        with pytest.raises(RuntimeError, match="out of luck"):
            train_as(plan, who)
    else:
        train_as(plan, who)
    assert notes == ["ran", "closed"]
