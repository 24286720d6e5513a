"""The driver's store for those who do not see its disk: an Arrow Flight server behind a bearer token.

It gives the files of prepared directories, and takes those that tasks have written into a directory that is being
prepared. Nothing is unpickled, no name leads out of the store, and of each file a few pieces are in memory.
"""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.flight as flight

from sparknet.errors import ClusterError, DataError
from sparknet.spark.jobs.ports import CHUNK_BYTES, DriverHost, TokenCheck, errors_for_the_client
from sparknet.whole_files import whole_file

__all__ = ["PIECES", "FileService"]

PIECES = pa.schema([("data", pa.binary())])
_GIVEN = re.compile(r"[0-9a-f]{16}/[a-z]+-[0-9]{5,}\.arrow")
_TAKEN = re.compile(r"\.preparing-[0-9a-f]{16}-[0-9a-f]{32}/[a-z]+-[0-9a-f-]+\.(arrow|npz)")
_SHUTDOWN_SECONDS = 3.0


class FileService(flight.FlightServerBase):  # pyright: ignore[reportUntypedBaseClass]
    """Serves a store until it is closed.

    Args:
        store: the directory.
        at: where.
        token: what every call must carry.
        tls: certificate and key as PEM, for TLS.

    Attributes:
        address: URI at which workers reach it.

    Raises:
        ClusterError: it cannot listen there.
    """

    def __init__(self, store: Path, *, at: DriverHost, token: str, tls: tuple[bytes, bytes] | None = None) -> None:
        self._store = store
        try:
            super().__init__(
                at.location(tls),
                tls_certificates=[tls] if tls else None,
                middleware={"token": TokenCheck(token)},
            )
        except (OSError, pa.ArrowException) as error:
            raise at.refused("the store's service", error) from error
        self.address = at.uri("grpc+tls" if tls else "grpc", self.port)

    def close(self) -> None:
        """Stop; calls that hang are not waited for."""
        shutdown = threading.Thread(target=self.shutdown, name="store-service-shutdown", daemon=True)
        shutdown.start()
        shutdown.join(_SHUTDOWN_SECONDS)

    def __enter__(self) -> "FileService":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def do_get(self, context: Any, ticket: Any) -> Any:
        """Send a file's bytes from an offset on."""
        with errors_for_the_client():
            asked = json.loads(ticket.ticket)
            path, start = self._path(str(asked["file"]), _GIVEN), int(asked["start"])
            if start < 0:
                raise ClusterError(f"{path.name} is asked for from byte {start}; the first one is 0")
            try:
                file = path.open("rb")
                file.seek(start)
            except OSError as error:
                raise DataError(f"{path}: cannot be read: {error.strerror}; prepare the data again") from error

        def batches() -> Iterator[pa.RecordBatch]:
            with file:
                # As the client takes them: what it has not asked for is not read.
                while data := file.read(CHUNK_BYTES):
                    yield pa.record_batch([[data]], schema=PIECES)

        return flight.GeneratorStream(PIECES, batches())

    def do_put(self, context: Any, descriptor: Any, reader: Any, writer: Any) -> None:
        """Take a file; it is whole and on disk when the call ends."""
        with errors_for_the_client():
            told = json.loads(descriptor.command)
            path = self._path(str(told["file"]), _TAKEN)
            most, digest, size = int(told["bytes"]), hashlib.sha256(), 0
            try:
                with whole_file(path) as draft:
                    with draft.open("wb") as file:
                        for data in _pieces(reader):
                            # Before it is written: who sends without end must not fill the driver's disk.
                            if size + len(data) > most:
                                raise ClusterError(
                                    f"more than {most} bytes of {path.name} arrived, which has so many"
                                )
                            digest.update(data)
                            size += file.write(data)
                    # A task that dies ends its stream as one that has sent everything.
                    if [size, digest.hexdigest()] != [most, told["sha256"]]:
                        raise ClusterError(f"{size} bytes of {path.name} arrived, which has {most}")
            except OSError as error:
                raise DataError(
                    f"{self._store}: the driver's store cannot be written: {error.strerror or error}; free space "
                    "or set data.store"
                ) from error

    def _path(self, name: str, pattern: re.Pattern[str]) -> Path:
        if not pattern.fullmatch(name):
            raise ClusterError(f"{name!r} is no file that this service gives or takes")
        return self._store / name


def _pieces(reader: Any) -> Iterator[memoryview]:
    try:
        for chunk in reader:
            for data in chunk.data.column(0):
                yield memoryview(data.as_buffer())
    except (OSError, pa.ArrowException) as error:  # which is no failure of the disk
        raise ClusterError(f"the stream of a file broke off: {error}") from error
