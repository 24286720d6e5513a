"""The driver service and its client over real sockets."""

import json
import re
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.flight as flight
import pytest
import torch
import trustme

import sparknet.spark.running.driver_service as service_module
from plays import live_slots
from sparknet.config import Data, Net, Run, RunConfig
from sparknet.data.loading.sampling_order import Cursor
from sparknet.data.loading.transform import Normalise
from sparknet.data.shards.prepared import PreparedData
from sparknet.errors import ClusterError, Unauthorized
from sparknet.spark.jobs.ports import DriverHost
from sparknet.spark.running.driver_client import DriverAddress, DriverClient
from sparknet.spark.running.driver_service import FILE_SCHEMA, DriverService
from sparknet.spark.running.worker_task import WorkerPlan
from sparknet.training.coordination.coordinator import Coordinator
from sparknet.training.coordination.messages import (
    Exchange,
    Failed,
    Heartbeat,
    Ready,
    Register,
    Stop,
    Superseded,
    Vote,
    Welcome,
    dump_message,
)
from sparknet.training.coordination.round_plan import RoundPlan
from sparknet.training.coordination.rules import Rules, RunProgress
from sparknet.training.objectives.preprocessing import Preprocessing
from sparknet.training.run_files.checkpoint import INNER, OUTER, WEIGHTS, Checkpoints
from sparknet.training.run_files.tensor_bytes import TensorFile, load_tensors

TOKEN = "the-secret-of-this-run"
START = Cursor(epoch=0, position=0)


class Stage:
    """A service with its coordinator and run directory."""

    def __init__(self, run_dir, *, slots=1, start=None, tls=None):
        rules = Rules(slots=slots, rounds=4, plan=RoundPlan(local_steps=1), heartbeat_timeout_seconds=60.0)
        self.coordinator = Coordinator(rules, now=time.monotonic(), start=start)
        self.checkpoints = Checkpoints(run_dir, keep=2)
        self.service = DriverService(
            self.coordinator, self.checkpoints, at=DriverHost(host="127.0.0.1"), token=TOKEN, tls=tls
        )
        self._clients = []

    def client(self, *, token=TOKEN, roots=b"", patience=0.5):
        address = DriverAddress(uri=self.service.address, token=token, tls_roots=roots)
        self._clients.append(DriverClient(address, patience_seconds=patience, beat_seconds=5.0))
        return self._clients[-1]

    def close(self):
        for client in self._clients:
            client.close()
        self.service.close()


@pytest.fixture
def stage(tmp_path):
    stage = Stage(tmp_path)
    yield stage
    stage.close()


@contextmanager
def background(action):
    """Run `action` beside the test; its future."""
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(action)


def register(slot=0, attempt=1):
    return Register(slot=slot, attempt=attempt, host="here")


def ready(slot=0, attempt=1):
    return Ready(slot=slot, attempt=attempt, round=0, steps=1, samples=8, cursor=START)


# The token and TLS ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("token", ["", "wrong", TOKEN + "x", TOKEN[:-1], "t" * 5000])
def test_a_wrong_token_is_refused_everywhere(stage, token):
    client = stage.client(token=token)
    calls = [
        lambda: client.ask(register()),
        lambda: client.tell(Heartbeat(slot=0, attempt=1)),
        lambda: client.tell(Failed(slot=0, attempt=1, host="here", phase="x", cause="y", fatal=True)),
        lambda: client.publish("key", b"value"),
        lambda: client.fetch("key", 1.0),
        lambda: client.put_checkpoint(0, {WEIGHTS: b"bytes"}),
        lambda: client.fetch_checkpoint(0),
    ]
    for call in calls:
        with pytest.raises(Unauthorized, match=r"refused the token while .*must get their plan from the driver"):
            call()
    assert stage.coordinator.status == "starting"
    assert live_slots(stage) == []
    assert stage.checkpoints.rounds() == []


def test_a_missing_token_is_refused(stage):
    with (
        flight.FlightClient(stage.service.address) as client,
        pytest.raises(flight.FlightUnauthenticatedError, match="token is missing or wrong"),
    ):
        list(client.do_action(flight.Action("ask", dump_message(register()))))
    assert live_slots(stage) == []


def test_the_token_is_in_no_text(stage):
    address = DriverAddress(uri=stage.service.address, token=TOKEN)
    config = RunConfig(
        data=Data(source="digits", validation_fraction=0.2), net=Net(name="lenet"), run=Run(rounds=1)
    )
    plain = Normalise(mean=None, scale=1.0)
    preprocessing = Preprocessing(train={"image": plain}, test={"image": plain})
    plan = WorkerPlan(
        config=config,
        driver=address,
        data=PreparedData(parts=(), manifests=(), inputs=(), targets=()),
        iterations=1,
        preprocessing=preprocessing,
    )
    errors = []
    for client in (stage.client(token=TOKEN + "-other"), stage.client()):
        with pytest.raises(ClusterError) as caught:
            client.put_checkpoint(3, {WEIGHTS: b""})
        errors.append(str(caught.value))
        with pytest.raises(ClusterError) as caught:
            client.fetch("nobody", 0.0) if client is not stage._clients[0] else client.fetch("nobody", 1.0)
        errors.append(str(caught.value))
    for text in [repr(address), repr(plan), str(plan), *errors]:
        assert TOKEN not in text


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """PEM files of a certificate for 127.0.0.1, and the root that signed it."""
    directory, authority = tmp_path_factory.mktemp("tls"), trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    certificate, key = directory / "certificate.pem", directory / "key.pem"
    certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    key.write_bytes(issued.private_key_pem.bytes())
    return certificate, key, authority.cert_pem.bytes()


def test_tls_serves_those_who_trust_its_certificate_and_nobody_else(tmp_path, certificates):
    certificate, key, root = certificates
    stage = Stage(tmp_path, tls=(certificate.read_bytes(), key.read_bytes()))
    try:
        assert stage.service.address.startswith("grpc+tls://")
        assert isinstance(stage.client(roots=root).ask(register()), Welcome)
        for roots in (b"", trustme.CA().cert_pem.bytes()):
            with pytest.raises(ClusterError):
                stage.client(roots=roots).ask(register(attempt=2))
        plain = DriverAddress(uri=stage.service.address.replace("+tls", ""), token=TOKEN)
        with pytest.raises(ClusterError):
            DriverClient(plain, patience_seconds=0.2).ask(register(attempt=2))
        with pytest.raises(Unauthorized):
            stage.client(roots=root, token="wrong").ask(register(attempt=2))
    finally:
        stage.close()


def test_an_address_that_is_not_here_names_the_setting(tmp_path):
    coordinator = Coordinator(Rules(slots=1, rounds=1, plan=RoundPlan(local_steps=1)), now=0.0)
    with pytest.raises(ClusterError, match=r"cannot listen on 192\.0\.2\.1.*set cluster\.driver_host"):
        DriverService(coordinator, Checkpoints(tmp_path, keep=2), at=DriverHost(host="192.0.2.1"), token=TOKEN)


# Requests ---------------------------------------------------------------------------------------------------


def test_a_request_is_answered_when_it_is_decided(tmp_path):
    stage = Stage(tmp_path, slots=2)
    try:
        first, second = stage.client(), stage.client()
        with background(lambda: first.ask(register(0))) as waiting:
            assert isinstance(second.ask(register(1)), Welcome)
            assert isinstance(waiting.result(10), Welcome)
        with background(lambda: first.ask(ready(0))) as waiting:
            assert isinstance(second.ask(ready(1)), Exchange)
            assert waiting.result(10).size == 2
    finally:
        stage.close()


def test_a_long_wait_is_asked_again(tmp_path, monkeypatch):
    monkeypatch.setattr(service_module, "LONG_POLL_SECONDS", 0.05)
    stage, polls = Stage(tmp_path, slots=2), threading.Semaphore(0)
    received = stage.coordinator.receive

    def receive(message, now):
        polls.release()
        received(message, now)

    monkeypatch.setattr(stage.coordinator, "receive", receive)
    try:
        with background(lambda: stage.client().ask(register(0))) as waiting:
            for _ in range(4):
                assert polls.acquire(timeout=10)
            stage.client().ask(register(1))
            assert isinstance(waiting.result(10), Welcome)
        assert stage.coordinator.failures == 0
    finally:
        stage.close()


def test_repeating_a_request_after_a_lost_reply_is_harmless(stage):
    client = stage.client()
    client.ask(register())
    exchange = client.ask(ready())
    vote = Vote(slot=0, attempt=1, round=0, epoch=exchange.epoch, ok=True, serial=77)
    with flight.FlightClient(stage.service.address) as raw:
        options = flight.FlightCallOptions(headers=[(b"authorization", f"Bearer {TOKEN}".encode())])
        action = flight.Action("ask", dump_message(vote))
        replies = [next(iter(raw.do_action(action, options))).body.to_pybytes() for _ in range(3)]
    assert len(set(replies)) == 1
    assert json.loads(replies[0])["kind"] == "Committed"
    assert stage.coordinator.round == 1


def test_a_newer_attempt_ends_the_wait_of_the_older(tmp_path):
    stage = Stage(tmp_path, slots=2)
    try:
        client, newer = stage.client(), stage.client()
        with background(lambda: client.ask(register(0, 1))) as waiting:
            wait_until(lambda: live_slots(stage) == [0])
            with background(lambda: newer.ask(register(0, 2))) as waiting_too:
                assert waiting.result(10) == Superseded()
                stage.service.locked(lambda coordinator: coordinator.stop("enough"))
                assert waiting_too.result(10) == Stop(reason="enough")
    finally:
        stage.close()


def wait_until(holds, seconds=10.0):
    """Poll what no event tells."""
    give_up, pause = time.monotonic() + seconds, threading.Event()
    while not holds():
        assert time.monotonic() < give_up
        pause.wait(0.005)


def test_heartbeats_and_failures_are_answered_at_once(stage):
    client = stage.client()
    assert not client.tell(Heartbeat(slot=0, attempt=1)).end
    client.ask(register())
    failure = Failed(slot=0, attempt=1, host="here", phase="stepping", cause="loss is nan", fatal=True)
    assert client.tell(failure).end
    assert client.ask(register(attempt=2)) == Stop(reason="worker 0 on here failed while stepping: loss is nan")


@pytest.mark.parametrize(
    ("kind", "body", "says"),
    [
        ("ask", b"\x00\xff garbage", "is not understood"),
        ("ask", b'{"kind": "Explode"}', "is not understood"),
        ("ask", b'{"kind": "Ready", "slot": "zero"}', "is not understood"),
        ("ask", dump_message(Stop(reason="x")), "is no question"),
        ("tell", dump_message(register()), "wants `ask`"),
        ("fly", b"{}", "is no action of this service"),
        ("fetch", b"[1, 2]", "is not understood"),
        ("publish", b'{"key": "k"}', "is not understood"),
        ("publish", b'{"key": "k", "value": "v", "more": "m"}', "is not understood"),
    ],
)
def test_garbage_gets_a_clear_error_and_changes_nothing(stage, kind, body, says):
    client = stage.client(patience=0.0)
    with pytest.raises(ClusterError, match=says) as caught:
        client._call(kind, body, seconds=10.0)
    assert "Traceback" not in str(caught.value)
    assert isinstance(client.ask(register()), Welcome)


def test_addresses_reach_those_that_wait_for_them(stage):
    first, second = stage.client(), stage.client()
    with background(lambda: first.fetch("epoch1/0", 10.0)) as waiting:
        second.publish("epoch1/0", bytes(range(256)))
        assert waiting.result(10) == bytes(range(256))


def test_an_address_that_never_comes_is_an_error(stage, monkeypatch):
    monkeypatch.setattr(service_module, "LONG_POLL_SECONDS", 0.05)
    with pytest.raises(ClusterError, match=r"no worker left its address as epoch9/3 in 0\.2 s"):
        stage.client().fetch("epoch9/3", 0.2)


def test_an_address_has_a_limit(stage):
    with pytest.raises(ClusterError, match="at most 65536"):
        stage.client(patience=0.0).publish("key", b"x" * 65537)


# The end ----------------------------------------------------------------------------------------------------


def test_a_closed_service_is_an_error_after_the_clients_patience(tmp_path):
    stage = Stage(tmp_path)
    client = stage.client(patience=1.0)
    client.ask(register())
    stage.service.close()
    began = time.monotonic()
    with pytest.raises(ClusterError, match=r"failed while calling ask: .*set cluster\.driver_host"):
        client.ask(ready())
    assert 0.8 < time.monotonic() - began < 4.0
    stage.close()


def test_the_patience_begins_with_the_first_failure(tmp_path, monkeypatch):
    """A call that waited long for a decision when the connection broke is tried again all the same."""
    stage = Stage(tmp_path)
    client, calls = stage.client(patience=0.3), []

    def call(kind, body, *, seconds):
        calls.append(time.monotonic())
        if len(calls) == 1:
            threading.Event().wait(0.6)  # longer than the patience
            raise ClusterError("the connection broke")
        return [b"answer"]

    monkeypatch.setattr(client, "_call", call)
    assert client._action("ask", b"", seconds=5.0) == [b"answer"]
    assert len(calls) == 2
    stage.close()


def test_closing_ends_the_calls_that_wait(tmp_path):
    stage = Stage(tmp_path, slots=2)
    client = stage.client(patience=0.0)
    with background(lambda: client.ask(register(0))) as waiting:
        wait_until(lambda: live_slots(stage) == [0])
        began = time.monotonic()
        stage.service.close()
        assert time.monotonic() - began < 2.0
        with pytest.raises(ClusterError):
            waiting.result(10)
    stage.close()


# Checkpoints ------------------------------------------------------------------------------------------------


def files(megabytes=9):
    weights = bytes(range(256)) * (megabytes * 4096) + b"an odd end"
    return {WEIGHTS: weights, INNER: b'{"1.step": 3}\n' + weights[:1000], OUTER: b"m" * 77}


def test_a_checkpoint_goes_and_comes_back_bit_for_bit(tmp_path):
    progress = RunProgress(round=7, samples=99, cursors={0: Cursor(epoch=2, position=5)})
    stage = Stage(tmp_path, start=progress)
    try:
        client = stage.client()
        client.put_checkpoint(7, files())
        assert stage.checkpoints.rounds() == [7]
        assert stage.checkpoints.load(7).progress == progress
        assert client.fetch_checkpoint(7) == files()
        event = stage.service.events.get(timeout=5)
        assert event["event"] == "checkpoint"
        assert event["round"] == 7
        assert event["bytes"] == sum(len(data) for data in files().values())
    finally:
        stage.close()


def test_tensors_go_piece_by_piece_and_come_back_in_memory_that_may_be_written(stage):
    tensors = {"weights": torch.randn(1_500_000), "seen": torch.tensor(3)}
    file = TensorFile(tensors)
    assert len(file) > service_module.CHUNK_BYTES
    client = stage.client()
    client.put_checkpoint(0, {WEIGHTS: file})
    got = client.fetch_checkpoint(0)[WEIGHTS]
    assert got == (stage.checkpoints.path(0) / WEIGHTS).read_bytes()
    assert not got.readonly
    for name, tensor in load_tensors(got).items():
        assert torch.equal(tensor, tensors[name])


@pytest.mark.parametrize("change", [-1, 1], ids=["shorter", "longer"])
def test_a_checkpoint_that_changes_while_it_is_fetched_is_an_error(stage, monkeypatch, change):
    client = stage.client()
    client.put_checkpoint(0, files(1))
    load = stage.checkpoints.load

    def load_and_damage(round):
        saved = load(round)
        path = stage.checkpoints.path(round) / WEIGHTS
        path.write_bytes(path.read_bytes()[:-1] if change < 0 else path.read_bytes() + b"x")
        return saved

    monkeypatch.setattr(stage.checkpoints, "load", load_and_damage)
    with pytest.raises(ClusterError, match=r"the driver sent .* of round 0, which has .*must stay as they are"):
        client.fetch_checkpoint(0)


def test_a_checkpoint_of_another_round_is_refused(stage):
    with pytest.raises(ClusterError, match="a checkpoint of round 3 came in round 0"):
        stage.client().put_checkpoint(3, files(1))
    assert list(stage.checkpoints.directory.glob("*")) == []
    assert stage.coordinator.status == "starting"


def test_a_checkpoint_that_is_not_there_is_an_error(stage):
    with pytest.raises(ClusterError, match=r"round-000005"):
        stage.client().fetch_checkpoint(5)


def test_a_worker_that_dies_while_it_puts_leaves_nothing_behind(stage):
    """To the server the end of a killed client's stream looks like that of one that has sent everything."""
    client, whole = stage.client(), files(2)
    command = json.dumps({"round": 0, "sizes": {name: len(data) for name, data in whole.items()}}).encode()
    writer, _ = client._client.do_put(
        flight.FlightDescriptor.for_command(command), FILE_SCHEMA, client._address.options(30.0)
    )
    half = pa.record_batch([[WEIGHTS], [whole[WEIGHTS][:100_000]]], schema=FILE_SCHEMA)
    writer.write_batch(half)
    with pytest.raises(flight.FlightServerError, match=r"got .* bytes of a checkpoint of"):
        writer.close()
    assert list(stage.checkpoints.directory.glob("*")) == []
    assert stage.coordinator.status == "starting", "a worker's death is no failure of the run"
    client.put_checkpoint(0, whole)
    assert stage.checkpoints.rounds() == [0]


def test_a_file_that_no_checkpoint_has_is_refused(stage):
    with pytest.raises(ClusterError, match=r"'\.\./evil' is no file of a checkpoint"):
        stage.client().put_checkpoint(0, {"../evil": b"x"})
    assert list(stage.checkpoints.directory.glob("*")) == []


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 4 MB."""
    directory = tmp_path / "disk"
    directory.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(directory)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"mounting a tmpfs needs root: {mounted.stderr.strip()}")
    yield directory
    subprocess.run(["umount", "-l", str(directory)], check=True)


@pytest.mark.parametrize("megabytes", [4, 9])
def test_a_full_disk_fails_the_run_with_the_remedy_and_leaves_nothing_half_written(small_disk, megabytes):
    stage = Stage(small_disk)
    try:
        with pytest.raises(ClusterError, match="No space left on device"):
            stage.client().put_checkpoint(0, files(megabytes))
        assert stage.coordinator.status == "failed"
        reason = stage.coordinator.reason
        assert re.search(r"round 0 cannot be written to .*No space left on device.*MB free", reason)
        assert "make room there, then `sparknet resume`" in reason
        assert list((small_disk / "checkpoints").iterdir()) == []
    finally:
        stage.close()
