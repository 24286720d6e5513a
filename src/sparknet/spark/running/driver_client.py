"""A worker's side of the driver service."""

import base64
import json
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import cast

import pyarrow as pa
import pyarrow.flight as flight

from sparknet.errors import ClusterError, Unauthorized
from sparknet.spark.jobs.ports import CHUNK_BYTES, DriverAddress, reason_of
from sparknet.spark.running.driver_service import FILE_SCHEMA, LONG_POLL_SECONDS, SIZES
from sparknet.training.coordination.messages import (
    Answer,
    Failed,
    Heartbeat,
    Pulse,
    Question,
    Wait,
    dump_message,
    load_message,
)
from sparknet.training.run_files.tensor_bytes import empty_bytes
from sparknet.training.sync.pieces import Bytes, Streamed, cut

__all__ = ["DriverAddress", "DriverClient"]

# The service answers `Wait` after a long poll; a call that outlives one by this much has lost its server.
_CALL_SECONDS = LONG_POLL_SECONDS + 10
_TRANSFER_SECONDS = 3600.0
"""Bound on moving a checkpoint; a driver that is gone is noticed by the heartbeat long before."""


class DriverClient:
    """`sparknet.training.worker.driver_protocol.Driver` over Arrow Flight.

    Must be made after a fork, never before: a gRPC channel does not survive one.

    Args:
        address: the driver service's.
        patience_seconds: how long a driver that cannot be reached is tried again.
        beat_seconds: deadline of a heartbeat.
    """

    def __init__(self, address: DriverAddress, *, patience_seconds: float = 4.0, beat_seconds: float = 2.0) -> None:
        self._address = address
        self._patience_seconds = patience_seconds
        self._beat_seconds = beat_seconds
        self._pause = threading.Event()
        self._serial = 0
        # Nothing is connected yet: gRPC does so at the first call, so only a malformed address fails here.
        self._client = address.connect()

    def ask(self, request: Question) -> Answer:
        """Send a request and wait until it is decided.

        Raises:
            ClusterError: the driver cannot be reached.
            Unauthorized: it refused the token.
        """
        # Two requests may be equal in every other field (after a fall back a worker is `Ready` for the same round
        # again); a repetition of this one keeps its number.
        self._serial += 1
        body = dump_message(replace(request, serial=self._serial))
        while True:
            answer = self._action("ask", body, seconds=_CALL_SECONDS)[0]
            message = cast("Answer", load_message(answer))
            # `Wait`: the same request again. The coordinator takes it for a repetition, so a lost answer costs
            # nothing.
            if not isinstance(message, Wait):
                return message

    def tell(self, message: Heartbeat | Failed) -> Pulse:
        """Send what is answered at once; tried once, with a short deadline."""
        # Not repeated: the next heartbeat says more than a late one, and a driver that missed it counts the
        # silence.
        answer = self._call("tell", dump_message(message), seconds=self._beat_seconds)[0]
        return cast("Pulse", load_message(answer))

    def publish(self, key: str, value: bytes) -> None:
        """Store a value for the other workers."""
        # gloo's addresses are bytes that need not be UTF-8.
        body = json.dumps({"key": key, "value": base64.b64encode(value).decode()}).encode()
        self._action("publish", body, seconds=_CALL_SECONDS)

    def fetch(self, key: str, timeout_seconds: float) -> bytes:
        """Wait for another worker's value.

        Raises:
            ClusterError: it did not come in time.
        """
        give_up = time.monotonic() + timeout_seconds
        while time.monotonic() < give_up:
            found = self._action("fetch", json.dumps({"key": key}).encode(), seconds=_CALL_SECONDS)
            # No result: the service's own wait was over before the value came.
            if found:
                return found[0]
        raise ClusterError(f"no worker left its address as {key} in {timeout_seconds:g} s")

    def put_checkpoint(self, round: int, files: Mapping[str, Bytes | Streamed]) -> None:
        """Hand the files of a checkpoint over, piece by piece; on return they are on the driver's disk."""
        sizes = {name: len(data) for name, data in files.items()}
        descriptor = flight.FlightDescriptor.for_command(json.dumps({"round": round, "sizes": sizes}).encode())
        try:
            writer, _ = self._client.do_put(descriptor, FILE_SCHEMA, self._address.options(_TRANSFER_SECONDS))
            # Leaving waits for the service's own end of the call: what it refused is raised here, and the files are
            # on its disk.
            with writer:
                for name, data in files.items():
                    for piece in cut(data, CHUNK_BYTES):
                        # Arrow copies it: the next one may come in the same memory.
                        columns = [pa.array([name]), pa.array([piece], pa.binary())]
                        writer.write_batch(pa.record_batch(columns, schema=FILE_SCHEMA))
                writer.done_writing()
        except (pa.ArrowException, OSError) as error:
            raise self._translated(error, "handing over a checkpoint") from error

    def fetch_checkpoint(self, round: int) -> dict[str, memoryview]:
        """The files of a checkpoint, in memory that may be written.

        Raises:
            ClusterError: the driver cannot be reached, has no such checkpoint, or its stream broke off.
        """
        try:
            ticket = flight.Ticket(json.dumps({"round": round}).encode())
            reader = self._client.do_get(ticket, self._address.options(_TRANSFER_SECONDS))
            # All of it at once: memory that grows is moved again and again under the interpreter's lock, for longer
            # than a heartbeat may be late.
            sizes: dict[str, int] = json.loads(reader.schema.metadata[SIZES])
            files, filled = {name: empty_bytes(size) for name, size in sizes.items()}, dict.fromkeys(sizes, 0)
            for chunk in reader:
                name: str = chunk.data.column(0)[0].as_py()
                # Pieces of one stream arrive in order, so they need no numbers.
                piece = memoryview(chunk.data.column(1)[0].as_buffer()).cast("B")
                at, filled[name] = filled[name], filled[name] + len(piece)
                if filled[name] > sizes[name]:
                    break
                files[name][at : filled[name]] = piece
        except (pa.ArrowException, OSError) as error:
            raise self._translated(error, f"fetching the checkpoint of round {round}") from error
        if filled != sizes:
            raise ClusterError(
                f"the driver sent {filled} bytes of the checkpoint of round {round}, which has {sizes}; its files "
                "must stay as they are while workers fetch them"
            )
        return files

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _action(self, kind: str, body: bytes, *, seconds: float) -> list[bytes]:
        """Call, and call again while the driver cannot be reached: every request may be repeated."""
        give_up: float | None = None
        while True:
            try:
                return self._call(kind, body, seconds=seconds)
            except Unauthorized:
                raise  # the token will be as wrong at the next try
            except ClusterError:
                # From the first failure on: the call before it may have waited long for a decision.
                give_up = give_up or time.monotonic() + self._patience_seconds
                if time.monotonic() > give_up:
                    raise
                self._pause.wait(0.2)  # between two tries; nothing is waited for

    def _call(self, kind: str, body: bytes, *, seconds: float) -> list[bytes]:
        try:
            results = self._client.do_action(flight.Action(kind, body), self._address.options(seconds))
            return [result.body.to_pybytes() for result in results]
        except (pa.ArrowException, OSError) as error:
            raise self._translated(error, f"calling {kind}") from error

    def _translated(self, error: Exception, doing: str) -> ClusterError:
        reason = reason_of(error)
        if isinstance(error, flight.FlightUnauthenticatedError):
            return Unauthorized(
                f"the driver service at {self._address.uri} refused the token while {doing}; workers must get "
                "their plan from the driver that runs now"
            )
        if isinstance(error, flight.FlightServerError):  # it was reached, and said so
            return ClusterError(f"the driver service at {self._address.uri} refused while {doing}: {reason}")
        return ClusterError(
            f"the driver service at {self._address.uri} failed while {doing}: {reason}; workers must reach that "
            "address: set cluster.driver_host"
        )
