"""What decides every byte of ImageNet's chunks, and where the chunks and their records lie."""

import json
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np

from sparknet.config import decode, encode
from sparknet.data.sources.label_file import Labels
from sparknet.data.storage.place import Place
from sparknet.errors import ConfigError, DataError

__all__ = [
    "ChunkPlan",
    "Layout",
    "LeftOut",
    "Settings",
    "Split",
    "TarReport",
    "Work",
    "draw_places",
    "dump",
    "load",
]

Split = Literal["train", "val"]
T = TypeVar("T")

VERSION = 1
"""Of the way from plan to bytes: another one must not go on with chunks of this one."""
LARGEST_SIDE = 65_500
"""JPEG holds no larger image."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What the user chooses for one split."""

    width: int
    """Of every image in the chunks, in pixels; the proportions are not kept, as in the original."""
    height: int
    chunks: int
    """Tar files to make."""
    seed: int = 0
    """Draws the order of the images."""
    quality: int = 90
    """Of the JPEG files that are written."""

    def __post_init__(self) -> None:
        bounds = {
            "width": (1, LARGEST_SIDE),
            "height": (1, LARGEST_SIDE),
            "chunks": (1, 10**6),
            "seed": (0, 2**63 - 1),
            "quality": (1, 100),
        }
        for name, (least, most) in bounds.items():
            value: int = getattr(self, name)
            if not least <= value <= most:
                raise ConfigError(f"{name} is {value}; it must be from {least} to {most}: set it to one of these")


@dataclass(frozen=True, kw_only=True, slots=True)
class ChunkPlan:
    """One split's settings and sources; it is kept beside the chunks, and whoever goes on must have the same."""

    split: Split
    settings: Settings
    images: int
    """Entries of the label file."""
    labels: str
    """SHA-256 of these entries."""
    source: str
    """The archive's name without its directory: it may be moved."""
    source_bytes: int
    """The archive's size."""
    version: int = VERSION

    def __post_init__(self) -> None:
        if self.settings.chunks > self.images:
            raise ConfigError(
                f"{self.settings.chunks} {self.split} chunks for {self.images} images; each needs at least one: "
                "ask for fewer"
            )

    def chunk_of(self, place: int) -> int:
        """The chunk of the image at `place` of the drawn order; chunks differ by one image at most."""
        return place * self.settings.chunks // self.images

    def places_in(self, chunk: int) -> range:
        """The places of the drawn order that `chunk_of` gives to a chunk."""
        # The inverse of `chunk_of`. Rounded up: the first place whose share reaches the chunk's number.
        first, stop = (-(-number * self.images // self.settings.chunks) for number in (chunk, chunk + 1))
        return range(first, stop)

    def differences(self, other: "ChunkPlan") -> list[str]:
        """What another plan has in place of this one's values, in words."""
        mine, others = ({**encode(plan), **encode(plan.settings)} for plan in (self, other))
        # The archive by name and size, not by its content: a checksum would read 138 GB.
        names = [name for name in mine if name != "settings" and mine[name] != others[name]]
        return [f"{name} {others[name]} in place of {mine[name]}" for name in names]


@dataclass(frozen=True, kw_only=True, slots=True)
class LeftOut:
    """A file under an image's name that is no image."""

    name: str
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class TarReport:
    """One finished chunk."""

    chunk: int
    images: int
    bytes: int
    """Size of the tar file."""
    corrupt: tuple[LeftOut, ...] = ()
    """Images of this chunk that cannot be decoded: they are left out."""
    missing: tuple[str, ...] = ()
    """Entries of the label file that no image was found for."""
    unlabelled: int = 0
    """Files of the archive without an entry in the label file; each is counted in one chunk, no matter which."""
    unlabelled_examples: tuple[str, ...] = ()
    """Some names of these."""
    stretches: tuple[str, ...] = ()
    """Parts of the archive that no header was found in; each is told in one chunk, no matter which."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """Where the parts of one split lie in the destination."""

    destination: Place
    plan: ChunkPlan

    @property
    def chunk_directory(self) -> Place:
        """Holds the tar files, under the names that the original used."""
        return self.destination / f"ILSVRC2012_img_{self.plan.split}"

    @property
    def record_directory(self) -> Place:
        """Holds what a restart needs to know."""
        return self.destination / "_prepared"

    @property
    def label_file(self) -> Place:
        """Names and labels of all images in the chunks' order; it is there once all chunks are."""
        return self.destination / f"{self.plan.split}.txt"

    @property
    def plan_file(self) -> Place:
        """The plan; each split has its own, so that they may be made by separate commands."""
        return self.record_directory / f"{self.plan.split}.plan.json"

    def chunk(self, number: int) -> Place:
        """The tar file of a chunk."""
        return self.chunk_directory / f"{self._stem(number)}.tar"

    def report(self, number: int) -> Place:
        """The report of a chunk, written when its tar file is there."""
        return self.record_directory / f"{self._stem(number)}.json"

    def _stem(self, number: int) -> str:
        # As the original named them, and wider where that is too short: names must sort like numbers.
        digits = max({"train": 5, "val": 3}[self.plan.split], len(str(self.plan.settings.chunks - 1)))
        return f"{self.plan.split}.{number:0{digits}}"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Work:
    """One split, ready to be made or gone on with.

    It travels to every task: for ImageNet 78 MB, which a task unpickles in 0.07 s.
    """

    archive: Place
    layout: Layout
    labels: Labels
    places: np.ndarray
    """int64 [images]: of each entry of `labels` in the drawn order."""
    entries: np.ndarray
    """int64 [images]: the entry of `labels` at each place."""
    pieces: tuple[tuple[int, int], ...]
    """First byte of each stretch of the archive that a task can read by itself, and the byte after its last."""
    kept: dict[int, TarReport]
    """Chunks that are there, by number: they need no making."""

    @property
    def plan(self) -> ChunkPlan:
        """What decides every byte."""
        return self.layout.plan

    @property
    def open_chunks(self) -> tuple[int, ...]:
        """The chunks still to be made."""
        return tuple(number for number in range(self.plan.settings.chunks) if number not in self.kept)

    def place_of(self, name: str) -> int | None:
        """The place of an image in the drawn order; None if the label file does not name it."""
        entry = self.labels.find(name)
        return None if entry is None else int(self.places[entry])

    def name_at(self, place: int) -> str:
        """Base name of the image at a place of the drawn order."""
        return self.labels.base_name(int(self.entries[place]))


def draw_places(plan: ChunkPlan) -> np.ndarray:
    """A permutation of 0 to `images` - 1, int64 [images]: element i is the place of entry i in the drawn order."""
    split = ("train", "val").index(plan.split)
    # Raw numbers of a bit generator, which numpy promises never to change, unlike its `permutation`: a restart
    # under another numpy must draw the same. The sort is stable for the same reason.
    draws = np.random.Philox(np.random.SeedSequence(plan.settings.seed, spawn_key=(split,))).random_raw(plan.images)
    places = np.empty(plan.images, np.int64)
    places[np.argsort(draws, kind="stable")] = np.arange(plan.images)
    return places


def dump(record: ChunkPlan | TarReport) -> bytes:
    """A record as it stands in its file."""
    return json.dumps(encode(record), indent=1).encode() + b"\n"


def load(place: Place, kind: type[T]) -> T:
    """Read a record.

    Raises:
        DataError: it cannot be read, or is none.
    """
    try:
        return decode(kind, json.loads(place.read()))
    except (ValueError, ConfigError) as error:
        raise DataError(f"{place} is no record ({kind.__name__}): {error}; delete it") from error
