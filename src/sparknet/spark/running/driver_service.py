"""The one port of a run: an Arrow Flight server round the coordinator, behind a bearer token.

Requests are JSON, checkpoints and addresses are bytes; nothing is unpickled. Every call is held at most
`LONG_POLL_SECONDS`, then answered `Wait`, so that each can have a deadline and a lost connection is noticed.
"""

import base64
import json
import queue
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.flight as flight

from sparknet.errors import CheckpointError, ClusterError
from sparknet.spark.jobs.ports import CHUNK_BYTES, DriverHost, TokenCheck, errors_for_the_client
from sparknet.training.coordination.coordinator import Coordinator
from sparknet.training.coordination.messages import (
    Answer,
    Failed,
    Heartbeat,
    Question,
    Wait,
    dump_message,
    load_message,
)
from sparknet.training.run_files.checkpoint import Checkpoints

__all__ = ["CHUNK_BYTES", "FILE_SCHEMA", "LONG_POLL_SECONDS", "SIZES", "DriverService"]

# A waiting call holds a thread of gRPC's and nothing else; shorter polls would only be more calls.
LONG_POLL_SECONDS = 5.0
FILE_SCHEMA = pa.schema([("file", pa.string()), ("data", pa.binary())])
SIZES = b"sizes"
"""Where the schema of a checkpoint that is sent tells each file's bytes, as JSON."""
_TICK_SECONDS = 0.1
_SHUTDOWN_SECONDS = 3.0
# A worker holds the token, but a defect in one must not fill the driver's memory.
_MAX_ADDRESS_BYTES = 64 << 10
_MAX_ADDRESSES = 8192


class DriverService(flight.FlightServerBase):  # pyright: ignore[reportUntypedBaseClass]
    """Gives a coordinator a lock, a clock and a socket.

    Args:
        coordinator: decides; only this service may touch it from now on, through `locked`.
        checkpoints: where `put` writes.
        at: where.
        token: what every call must carry.
        tls: certificate and key as PEM, for TLS.

    Attributes:
        address: URI at which workers reach it.
        events: the coordinator's event records, in order.
        lost: (slot, attempt) of workers that fell silent; their tasks may hang and want killing.
    """

    def __init__(
        self,
        coordinator: Coordinator,
        checkpoints: Checkpoints,
        *,
        at: DriverHost,
        token: str,
        tls: tuple[bytes, bytes] | None = None,
    ) -> None:
        # All of this before the server exists, which answers calls from the moment that it does.
        self._coordinator = coordinator
        self._checkpoints = checkpoints
        self._changed = threading.Condition()
        self._addresses: dict[str, bytes] = {}
        self._closing = threading.Event()
        self.events: queue.SimpleQueue[dict[str, object]] = queue.SimpleQueue()
        self.lost: queue.SimpleQueue[tuple[int, int]] = queue.SimpleQueue()
        try:
            super().__init__(
                at.location(tls),
                tls_certificates=[tls] if tls else None,
                middleware={"token": TokenCheck(token)},
            )
        except (OSError, pa.ArrowException) as error:
            raise at.refused("the driver service", error) from error
        self.address = at.uri("grpc+tls" if tls else "grpc", self.port)
        self._ticker = threading.Thread(target=self._tick, name="coordinator-clock", daemon=True)
        self._ticker.start()

    # Calls from the driver's own threads -----------------------------------------------------------------

    def locked(self, action: Callable[[Coordinator], Any]) -> Any:
        """Run `action` on the coordinator alone, then wake whoever waits for its decisions."""
        with self._changed:
            result = action(self._coordinator)
            self._announce()
        return result

    def close(self) -> None:
        """Stop the clock and the server; waiting calls end."""
        # First, so that no call begins to wait again; then those that wait are woken, for the shutdown waits for
        # them.
        self._closing.set()
        self._ticker.join()
        with self._changed:
            self._changed.notify_all()
        # A worker that hangs in the middle of a checkpoint would hold the shutdown for as long as it hangs.
        shutdown = threading.Thread(target=self.shutdown, name="driver-service-shutdown", daemon=True)
        shutdown.start()
        shutdown.join(_SHUTDOWN_SECONDS)

    def __enter__(self) -> "DriverService":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _tick(self) -> None:
        while not self._closing.wait(_TICK_SECONDS):
            with self._changed:
                try:
                    self._coordinator.tick(time.monotonic())
                except Exception as error:  # without a clock nobody would ever be missed: end the run, loudly
                    self._coordinator.fail(f"the coordinator is broken ({error!r}); please report this")
                self._announce()

    def _announce(self) -> None:
        self._pass_on_events()
        self._changed.notify_all()

    def _pass_on_events(self) -> bool:
        # Under the lock, so that the queue has the events in the order of the decisions.
        events = self._coordinator.drain_events()
        for event in events:
            self.events.put(event)
        for lost in self._coordinator.drain_lost():
            self.lost.put(lost)
        return bool(events)

    # Calls from workers ----------------------------------------------------------------------------------

    def do_action(self, context: Any, action: Any) -> list[bytes]:
        """Serve `ask`, `tell`, `publish` and `fetch`."""
        body = action.body.to_pybytes()
        with errors_for_the_client():
            match action.type:
                case "ask":
                    return [dump_message(self._ask(load_message(body)))]
                case "tell":
                    return [dump_message(self._tell(load_message(body)))]
                case "publish":
                    key, value = _texts(body, "key", "value")
                    return self._publish(key, base64.b64decode(value))
                case "fetch":
                    return self._fetch(*_texts(body, "key"))
                case _:
                    raise ClusterError(f"{action.type!r} is no action of this service")

    def _ask(self, request: object) -> Answer:
        if not isinstance(request, Question):
            raise ClusterError(f"{type(request).__name__} is no question of a worker")
        give_up = time.monotonic() + LONG_POLL_SECONDS
        with self._changed:
            # At every repetition too: it changes nothing then, but is a sign of life.
            self._coordinator.receive(request, time.monotonic())
            self._announce()
            # Each decision wakes everybody who waits; who has no answer yet waits on.
            while (answer := self._coordinator.answer_for(request.slot, request.attempt)) is None:
                left = give_up - time.monotonic()
                if left <= 0 or self._closing.is_set():
                    return Wait()
                self._changed.wait(left)
            return answer

    def _tell(self, message: object) -> Answer:
        if not isinstance(message, Heartbeat | Failed):
            raise ClusterError(f"{type(message).__name__} wants `ask`")
        with self._changed:
            self._coordinator.receive(message, time.monotonic())
            # Heartbeats come from every worker several times a second: waking all who wait at each would be work
            # for K² threads.
            if self._pass_on_events() or self._coordinator.ended:
                self._changed.notify_all()
            return self._coordinator.pulse_for(message.slot, message.attempt)

    def _publish(self, key: str, value: bytes) -> list[bytes]:
        if len(value) > _MAX_ADDRESS_BYTES:
            raise ClusterError(f"{len(value)} bytes; an address has at most {_MAX_ADDRESS_BYTES}")
        with self._changed:
            self._addresses[key] = value
            # A dictionary keeps the order in which keys came.
            while len(self._addresses) > _MAX_ADDRESSES:  # the oldest: groups that will never meet again
                del self._addresses[next(iter(self._addresses))]
            self._changed.notify_all()
        return []

    def _fetch(self, key: str) -> list[bytes]:
        """The value as one result, or no result when it has not come in one call's time."""
        with self._changed:
            there = self._changed.wait_for(
                lambda: key in self._addresses or self._closing.is_set(), timeout=LONG_POLL_SECONDS
            )
            return [self._addresses[key]] if there and key in self._addresses else []

    def do_put(self, context: Any, descriptor: Any, reader: Any, writer: Any) -> None:
        """Take a checkpoint of the current round; a full disk fails the run."""
        with errors_for_the_client():
            request = json.loads(descriptor.command)
            round, sizes = int(request["round"]), dict(request["sizes"])
        with self._changed:
            progress = self._coordinator.progress
        # A worker that was given up meanwhile may still send the checkpoint of a round long past.
        if progress.round != round:
            raise flight.FlightServerError(f"a checkpoint of round {round} came in round {progress.round}")
        began = time.monotonic()
        try:
            # Without the lock: writing gigabytes under it would silence every heartbeat. No round is committed
            # meanwhile, since the next quorum waits for this chore.
            with self._checkpoints.writing(progress) as draft:
                for name, data in _pieces(reader):
                    draft.write(name, data)
                if draft.sizes != sizes:  # a worker that dies ends its stream as one that has sent everything
                    raise flight.FlightServerError(f"got {draft.sizes} bytes of a checkpoint of {sizes}")
        except CheckpointError as error:
            # The disk's failure ends the run; a stream that broke off is a worker's, and another gets the chore.
            self.locked(lambda coordinator, reason=str(error): coordinator.fail(reason))
            raise flight.FlightServerError(str(error)) from error
        self.events.put(
            {
                "event": "checkpoint",
                "round": round,
                "iteration": progress.iteration,
                "path": str(self._checkpoints.path(round)),
                "bytes": sum(sizes.values()),
                "seconds": time.monotonic() - began,
            }
        )

    def do_get(self, context: Any, ticket: Any) -> Any:
        """Send the files of a checkpoint."""
        with errors_for_the_client():
            saved = self._checkpoints.load(int(json.loads(ticket.ticket)["round"]))
        directory = self._checkpoints.path(saved.round)
        sizes = json.dumps({name: file.bytes for name, file in saved.files.items()})
        schema = FILE_SCHEMA.with_metadata({SIZES: sizes})

        def batches() -> Iterator[pa.RecordBatch]:
            for name in saved.files:
                with (directory / name).open("rb") as file:
                    # As the client takes it: every joiner's own copy of the checkpoint would be memory of the
                    # driver's.
                    while data := file.read(CHUNK_BYTES):
                        yield pa.record_batch([[name], [data]], schema=schema)

        return flight.GeneratorStream(schema, batches())


def _texts(body: bytes, *keys: str) -> list[str]:
    """The values of a JSON object that holds exactly these texts."""
    try:
        fields = json.loads(body)
        if not isinstance(fields, dict) or sorted(fields) != sorted(keys):
            raise ValueError(f"it must hold {', '.join(keys)}")
        return [str(fields[key]) for key in keys]
    except ValueError as error:
        raise ClusterError(f"a request of {len(body)} bytes is not understood ({error})") from error


def _pieces(reader: Any) -> Iterator[tuple[str, memoryview]]:
    """(file, bytes) of a worker's stream; a stream that breaks is no failure of the disk."""
    try:
        for chunk in reader:
            for name, data in zip(chunk.data.column(0), chunk.data.column(1), strict=True):
                yield name.as_py(), memoryview(data.as_buffer())
    except (OSError, pa.ArrowException) as error:
        raise flight.FlightServerError(f"the stream of a checkpoint broke off: {error}") from error
