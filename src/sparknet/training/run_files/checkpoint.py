"""Checkpoints in the run directory: written whole or not at all, checked when read.

`checkpoints/round-000050/` holds `weights.safetensors` (the net's state_dict), `inner.state` (one replica's
optimiser), `outer.safetensors` (the outer optimiser's momentum, where it has one) and `checkpoint.json`, which
is written last and holds the size and SHA-256 of each.
"""

import contextlib
import hashlib
import json
import shutil
import threading
from collections import Counter
from collections.abc import Generator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from sparknet.config import decode, encode
from sparknet.data.loading.sampling_order import Cursor
from sparknet.errors import CheckpointError, ConfigError
from sparknet.training.coordination.best_round import BestRound
from sparknet.training.coordination.rules import RunProgress
from sparknet.training.sync.pieces import Bytes, Streamed, cut
from sparknet.whole_files import whole_directory

__all__ = ["FILES", "INDEX", "INNER", "OUTER", "WEIGHTS", "Checkpoints", "Draft", "Saved"]

WEIGHTS = "weights.safetensors"
INNER = "inner.state"
OUTER = "outer.safetensors"
INDEX = "checkpoint.json"
FILES = (WEIGHTS, INNER, OUTER)
_PIECE_BYTES = 4 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class _File:
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Saved:
    """One checkpoint as its `checkpoint.json` describes it."""

    round: int
    iteration: int
    samples: int
    cursors: dict[str, Cursor]
    order: str = ""
    """Which sampling order the cursors count in."""
    best: BestRound | None = None
    """The best validation so far, where validations are judged."""
    files: dict[str, _File]

    @property
    def progress(self) -> RunProgress:
        """Where the run goes on from here."""
        cursors = {int(slot): cursor for slot, cursor in self.cursors.items()}
        return RunProgress(
            round=self.round,
            iteration=self.iteration,
            samples=self.samples,
            cursors=cursors,
            order=self.order,
            best=self.best,
        )


class Draft:
    """A checkpoint being written; it exists for readers only after `finish`.

    Attributes:
        sizes: bytes written so far, by file.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.sizes: dict[str, int] = {}
        self._open: dict[str, BinaryIO] = {}
        self._hashes: dict[str, Any] = {}

    def write(self, name: str, data: Bytes) -> None:
        """Append to one of the checkpoint's files."""
        # Names come over the network: any other could lead out of the directory.
        if name not in FILES:
            raise CheckpointError(f"{name!r} is no file of a checkpoint; those are {', '.join(FILES)}")
        if name not in self._open:
            self._open[name] = (self.directory / name).open("wb")
            self._hashes[name] = hashlib.sha256()
        self._open[name].write(data)
        # While the bytes pass by: a hash of the file read again would vouch for what the disk made of it.
        self._hashes[name].update(data)
        self.sizes[name] = self.sizes.get(name, 0) + len(data)

    def write_all(self, name: str, data: Bytes | Streamed) -> None:
        """Append all of it to one of the checkpoint's files, piece by piece."""
        for piece in cut(data, _PIECE_BYTES):
            self.write(name, piece)

    def finish(self, progress: RunProgress) -> None:
        """Close the files and write the index."""
        files = {
            name: _File(bytes=size, sha256=self._hashes[name].hexdigest()) for name, size in self.sizes.items()
        }
        for file in self._open.values():
            file.flush()  # here, where a full disk may still refuse the last buffer in words
        self.close()
        cursors = {str(slot): cursor for slot, cursor in progress.cursors.items()}
        saved = Saved(
            round=progress.round,
            iteration=progress.iteration,
            samples=progress.samples,
            cursors=cursors,
            order=progress.order,
            best=progress.best,
            files=files,
        )
        # Last, and with the hashes of all the others: a checkpoint without it, or with another, is none.
        (self.directory / INDEX).write_text(json.dumps(encode(saved), indent=1), encoding="utf-8")

    def close(self) -> None:
        """Close the open files."""
        for file in self._open.values():
            with contextlib.suppress(OSError):  # a full disk refuses the last buffer; `finish` has flushed by now
                file.close()


class Checkpoints:
    """The checkpoints of one run directory.

    Args:
        run_dir: the run directory.
        keep: how many are kept, newest first.
        until_released: keep each that is written until its `release`, too.
    """

    def __init__(self, run_dir: Path, keep: int, *, until_released: bool = False) -> None:
        self.directory = run_dir / "checkpoints"
        self.keep = keep
        self._holds = until_released
        # One thread writes, and another releases what it has made of them.
        self._lock = threading.Lock()
        self._held = Counter[int]()
        self._newest = RunProgress()

    def path(self, round: int) -> Path:
        """Where the checkpoint of a round lies."""
        return self.directory / f"round-{round:06d}"

    def rounds(self) -> list[int]:
        """Rounds with a checkpoint, damaged ones included, ascending."""
        if not self.directory.is_dir():
            return []
        names = (path.name.removeprefix("round-") for path in self.directory.glob("round-*"))
        return sorted(int(name) for name in names if name.isdigit())

    @contextmanager
    def writing(self, progress: RunProgress) -> Generator[Draft]:
        """Write the checkpoint of `progress.round`; on leaving without an error it appears, whole.

        Raises:
            CheckpointError: the disk is full or cannot be written; nothing is left behind.
        """
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            # The same round comes once more after a fall-back: then a damaged one is in its place
            with whole_directory(self.path(progress.round)) as directory, closing(Draft(directory)) as draft:
                yield draft
                draft.finish(progress)
        except OSError as error:
            raise CheckpointError(
                f"the checkpoint of round {progress.round} cannot be written to {self.directory}: "
                f"{error.strerror or error}{self._free()}; make room there, then `sparknet resume` goes on from "
                "the checkpoint before"
            ) from error
        with self._lock:
            self._newest = progress
            # Counted, since after a fall-back the same round is written once more.
            self._held[progress.round] += self._holds
            self._make_room()

    def release(self, round: int) -> None:
        """Say that one that was written is needed no longer than any other."""
        with self._lock:
            self._held[round] -= 1
            self._make_room()

    def _make_room(self) -> None:
        newest = self._newest
        # Later ones are damaged, else the run had gone on from them: they must not displace good ones.
        upto = [round for round in self.rounds() if round <= newest.round]
        best = newest.best.round if newest.best else None
        for round in upto[: -self.keep]:
            # What the run is for, however old it is.
            if round == best or self._held[round] > 0:
                continue
            # One that cannot be removed costs room alone, and half of one is passed over as damaged.
            shutil.rmtree(self.path(round), ignore_errors=True)

    def _free(self) -> str:
        try:
            return f" ({shutil.disk_usage(self.directory).free / 1e6:.1f} MB free)"
        except OSError:
            return ""

    def load(self, round: int) -> Saved:
        """Read the index of a checkpoint and check every file against it.

        Raises:
            CheckpointError: naming the file that is missing, cut short or changed.
        """
        path = self.path(round)
        try:
            saved = decode(Saved, json.loads((path / INDEX).read_text(encoding="utf-8")))
            # The index is read from a disk that others write to: its names are held to the known ones too.
            if saved.round != round or WEIGHTS not in saved.files or not set(saved.files) <= set(FILES):
                raise CheckpointError(f"{path / INDEX} is damaged: it describes another checkpoint")
            for name, file in saved.files.items():
                with (path / name).open("rb") as stream:
                    found = hashlib.file_digest(stream, "sha256").hexdigest()
                # All of it is read once more here, which is cheap beside a run that goes on from damaged weights.
                if found != file.sha256:
                    raise CheckpointError(f"{path / name} is damaged: its SHA-256 is not the recorded one")
        except (OSError, ValueError, ConfigError) as error:
            raise CheckpointError(f"{path} is damaged: {error}") from error
        return saved

    def newest_good(self) -> tuple[Saved | None, list[Path]]:
        """The newest checkpoint that is whole, and the damaged ones that were passed over."""
        skipped: list[Path] = []
        for round in reversed(self.rounds()):
            try:
                return self.load(round), skipped
            except CheckpointError:
                skipped.append(self.path(round))
        return None, skipped
