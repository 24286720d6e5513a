"""A remote file as Python reads files: every request is a range, verified to be whole, made again if it broke."""

import io
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from sparknet.data.storage.remedies import Cut

__all__ = ["READ_AHEAD_BYTES", "RemoteFile"]

READ_AHEAD_BYTES = 8 << 20
"""Small reads are served from pieces of this: smaller requests cost more in latency than in bytes."""
_REQUEST_BYTES = 32 << 20  # a request that breaks costs no more than this to repeat
_AT_ONCE = 4  # one stream of an object store is a fraction of what a network gives


class RemoteFile(io.RawIOBase):
    """For `io.BufferedReader`, with a buffer of `READ_AHEAD_BYTES`.

    Args:
        file: Arrow's random access file; it knows its size.
        run: calls what it is given again where an error is transient, and raises DataError in the end.
    """

    def __init__(self, file: Any, *, run: Callable[[Callable[[], bytes]], bytes]) -> None:
        super().__init__()
        self._file = file
        self._run = run
        # From the answer to the request that opened it: no other is made for it.
        self.size: int = file.size()
        """Bytes of the file."""
        self._at = 0

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def tell(self) -> int:
        """The offset of the next read."""
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to `offset` from the beginning, from here or from the end; costs no request."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.size}[whence]
        if base + offset < 0:
            raise ValueError(f"seek to {base + offset}; an offset is 0 or more")
        self._at = base + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer` from here, or as much of it as the file has: one request."""
        view = memoryview(buffer).cast("B")
        # No more than one request: BufferedReader asks again for the rest, so one that breaks costs little.
        size = min(len(view), _REQUEST_BYTES, max(0, self.size - self._at))
        if size:
            view[:size] = self.take(self._at, size)
            self._at += size
        return size

    def readall(self) -> bytes:
        """The rest of the file."""
        data = self.take(self._at, max(0, self.size - self._at))
        self._at += len(data)
        return data

    def take(self, start: int, size: int) -> bytes:
        """Exactly `size` bytes from `start`, which the file must have, in requests of at most 32 MB."""
        if size <= _REQUEST_BYTES:
            return self._run(lambda: self._request(start, size)) if size else b""
        whole = io.BytesIO()  # gives its bytes away without another copy, which joining a list would make
        for at in range(start, start + size, _REQUEST_BYTES):
            whole.write(self.take(at, min(_REQUEST_BYTES, start + size - at)))
        return whole.getvalue()

    def pieces(self, start: int = 0) -> Iterator[bytes]:
        """The file from byte `start` on, in order, in pieces of at most 8 MB; several are asked for at once.

        Memory: twice as many pieces as are asked for at once, of this file alone.
        """
        starts = iter(range(start, self.size, READ_AHEAD_BYTES))
        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="sparknet-ranges") as pool:
            asked: deque[Future[bytes]] = deque()
            try:
                while True:
                    while len(asked) < 2 * _AT_ONCE and (at := next(starts, None)) is not None:
                        asked.append(pool.submit(self.take, at, min(READ_AHEAD_BYTES, self.size - at)))
                    if not asked:
                        return
                    yield asked.popleft().result()
            finally:
                # Who stops in the middle, or meets an error, does not wait for what has not begun.
                for one in asked:
                    one.cancel()

    def close(self) -> None:
        """Close Arrow's file."""
        if not self.closed:
            self._file.close()
        super().close()

    def _request(self, start: int, size: int) -> bytes:
        data = self._file.read_at(size, start)
        # Arrow gives fewer bytes than asked for where an answer ends early, and calls it no error.
        if len(data) != size:
            raise Cut(f"{len(data)} of {size} bytes from offset {start} arrived")
        return data
