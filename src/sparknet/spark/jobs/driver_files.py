"""A task's side of the store's service: files of the driver's store, given and taken."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.flight as flight

from sparknet.data.storage.retry import Patience
from sparknet.errors import ClusterError, DataError, SparkNetError, Unauthorized
from sparknet.spark.jobs.file_service import PIECES
from sparknet.spark.jobs.ports import CHUNK_BYTES, DriverAddress, reason_of

__all__ = ["DriverFiles"]

_TRANSFER_SECONDS = 3600.0  # bound on one file


@dataclass(frozen=True, kw_only=True, slots=True)
class DriverFiles:
    """A directory of the driver's store. It travels to tasks, and connects anew for each file."""

    address: DriverAddress
    directory: str
    """Its name in the store."""

    def pieces(self, name: str) -> Iterator[memoryview]:
        """The bytes of a file, in order; a stream that breaks goes on where it broke.

        Raises:
            DataError: the driver cannot read it.
            ClusterError: the driver cannot be reached.
        """
        patience, arrived = Patience(), 0
        while True:
            try:
                with closing(self.address.connect()) as client:
                    asked = json.dumps({"file": f"{self.directory}/{name}", "start": arrived}).encode()
                    for chunk in client.do_get(flight.Ticket(asked), self.address.options(_TRANSFER_SECONDS)):
                        piece = memoryview(chunk.data.column(0)[0].as_buffer())
                        patience.arrived()
                        arrived += len(piece)
                        yield piece
                return
            except (OSError, pa.ArrowException) as error:
                self._raise_if_over(error, patience, f"fetching {name}")
                yield memoryview(b"")

    def deliver(self, path: Path, name: str) -> None:
        """Hand a file over; on return it is on the driver's disk.

        Raises:
            DataError: the driver cannot write it.
            ClusterError: the driver cannot be reached.
        """
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        told = {"file": f"{self.directory}/{name}", "bytes": path.stat().st_size, "sha256": digest}
        patience = Patience()
        while True:
            try:
                self._put(path, json.dumps(told).encode())
                return
            except (OSError, pa.ArrowException) as error:
                self._raise_if_over(error, patience, f"handing over {name}")

    def _put(self, path: Path, told: bytes) -> None:
        with closing(self.address.connect()) as client, path.open("rb") as file:
            descriptor = flight.FlightDescriptor.for_command(told)
            writer, _ = client.do_put(descriptor, PIECES, self.address.options(_TRANSFER_SECONDS))
            # Leaving waits for the service's own end of the call: what it refused is raised here.
            with writer:
                while data := file.read(CHUNK_BYTES):
                    writer.write_batch(pa.record_batch([pa.array([data], pa.binary())], schema=PIECES))
                writer.done_writing()

    def _raise_if_over(self, error: Any, patience: Patience, doing: str) -> None:
        """Raise what another try does not help with; else wait a moment."""
        told = self._translated(error, doing)
        if not isinstance(told, ClusterError) or isinstance(told, Unauthorized) or not patience.lasts():
            raise told from error

    def _translated(self, error: Exception, doing: str) -> SparkNetError:
        uri, reason = self.address.uri, reason_of(error)
        if isinstance(error, flight.FlightUnauthenticatedError):
            return Unauthorized(f"the store's service at {uri} refused the token while {doing}; run the job again")
        if isinstance(error, flight.FlightServerError):  # it was reached, and said so
            return DataError(f"the driver refused while {doing}: {reason}")
        return ClusterError(
            f"the store's service at {uri} failed while {doing}: {reason}; workers must reach that address: set "
            "cluster.driver_host, or data.store to a shared directory or s3://"
        )
