"""What a column is, as it is stored and as the net or the loss gets it; and further sources of columns."""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Literal

from sparknet.config.rules import all_finite, at_least, require

__all__ = ["Beside", "DataColumn", "TestRows"]


@dataclass(frozen=True, kw_only=True, slots=True)
class DataColumn:
    """One column as it is stored and as the net or the loss gets it: `[data.columns.NAME]`."""

    kind: Literal["image", "array", "number", "category", "ids"] | None = None
    """An image, an array or vector of numbers, one number, a class, or a list of whole numbers such as a text's
    tokens. Not given: what the column's own type says; a target of whole numbers, words or booleans is a class."""
    dtype: Literal["uint8", "float32", "int64"] | None = None
    """Of the stored values; not given: pixels are uint8, numbers float32, classes and ids int64."""
    shape: tuple[int, ...] = ()
    """Of one row; () takes the first row's. Rows of another shape are an error unless `length` is given."""
    length: int | None = None
    """Lists of any length are brought to so many values: shorter ones are filled up with `pad`."""
    pad: float = 0.0
    """With `length`: what fills up short lists."""
    truncate: bool = False
    """With `length`: longer lists are cut; if not, they are an error."""
    classes: int | None = None
    """Of a class: values must be below this; not given: one more than the largest seen."""
    resize: tuple[int, ...] = ()
    """As `data.resize`."""
    resize_mode: Literal["exact", "shorter_side"] = "exact"
    """As `data.resize_mode`."""
    channel_order: Literal["rgb", "bgr"] | None = None
    """As `data.channel_order`."""
    channels: Literal["colour", "grey", "stored"] | None = None
    """As `data.channels`."""
    keep: Literal["pixels", "encoded"] = "pixels"
    """As `data.keep`."""
    sizes: Literal["one", "own"] | None = None
    """As `data.sizes`."""
    mean: Literal["none", "channel", "image"] | None = None
    """As `data.mean`; not given: channel for images, none for others."""
    mean_values: tuple[float, ...] = ()
    """As `data.mean_values`."""
    mean_file: str = ""
    """As `data.mean_file`."""
    scale: float = 1.0
    """As `data.scale`."""
    std: Literal["none", "channel"] = "none"
    """As `data.std`."""
    std_values: tuple[float, ...] = ()
    """As `data.std_values`."""
    crop: int = 0
    """As `data.crop`; images of one size in one row are cut at the same place."""
    mirror: bool = False
    """As `data.mirror`; images of one row are mirrored together."""

    def __post_init__(self) -> None:
        all_finite("data.columns", self)

    @property
    def may_keep_sizes(self) -> bool:
        """Whether images may be of several sizes: a square is cut out of each, and no mean image is taken off."""
        if self.resize or self.shape or self.mean == "image" or self.mean_file:
            return False
        return self.sizes == "own" or (self.sizes is None and self.crop > 0)

    def check(self, key: str) -> None:
        """Hold the values against each other.

        Args:
            key: where they stand, `data` or `data.columns.NAME`.

        Raises:
            ConfigError: naming key, value and rule.
        """
        require(all(size >= 1 for size in self.shape), f"{key}.shape", self.shape, "every size must be at least 1")
        if self.classes is not None:
            at_least(f"{key}.classes", self.classes, 2)
        if self.kind is not None:
            _check_kind(self, self.kind, key)
        _check_length(self, key)
        _check_images(self, key)
        _check_mean_and_std(self, key)


def _check_kind(column: DataColumn, kind: str, key: str) -> None:
    for name in _TAKEN_BY:
        value = getattr(column, name)
        require(
            kind in _TAKEN_BY[name] or value == getattr(DataColumn(), name),
            f"{key}.{name}",
            value,
            f"kind {kind} does not take it: leave it out",
        )
    require(
        kind != "ids" or column.dtype in (None, "int64"),
        f"{key}.dtype",
        column.dtype,
        "ids are int64: leave it out, or set the kind to array",
    )


def _check_length(column: DataColumn, key: str) -> None:
    if column.length is None:
        for name, value in (("truncate", column.truncate), ("pad", column.pad)):
            require(not value, f"{key}.{name}", value, f"it goes with a length: set {key}.length")
        return
    at_least(f"{key}.length", column.length, 1)
    require(
        column.shape in ((), (column.length,)),
        f"{key}.length and {key}.shape",
        (column.length, list(column.shape)),
        f"both say how long rows are: leave {key}.shape out",
    )
    if column.kind == "ids" or column.dtype in ("int64", "uint8"):
        most = 255 if column.dtype == "uint8" else 1 << 53  # of float64, which TOML's numbers are read as
        require(
            column.pad.is_integer() and (column.dtype != "uint8" or column.pad >= 0) and abs(column.pad) <= most,
            f"{key}.pad",
            column.pad,
            f"it becomes {column.dtype or 'int64'}: give such a number",
        )


_PIXELS = ("image", "array")
_NUMBERS = ("image", "array", "number")
_LISTS = ("array", "ids")
_TAKEN_BY = {
    "dtype": _LISTS,
    "shape": _PIXELS,
    "length": _LISTS,
    "pad": _LISTS,
    "truncate": _LISTS,
    "classes": ("category",),
    "resize": ("image",),
    "resize_mode": ("image",),
    "channel_order": ("image",),
    "channels": ("image",),
    "keep": ("image",),
    "sizes": _PIXELS,
    "mean": _NUMBERS,
    "mean_values": _NUMBERS,
    "mean_file": _NUMBERS,
    "scale": _NUMBERS,
    "std": _NUMBERS,
    "std_values": _NUMBERS,
    "crop": _PIXELS,
    "mirror": _PIXELS,
}
"""By key the kinds of columns for which it means something."""


def _check_images(column: DataColumn, key: str) -> None:
    require(
        len(column.resize) in (0, 2) and all(size >= 1 for size in column.resize),
        f"{key}.resize",
        list(column.resize),
        "it must be [height, width], both at least 1",
    )
    require(
        column.resize_mode == "exact" or bool(column.resize),
        f"{key}.resize_mode",
        column.resize_mode,
        f"it says how images are resized: set {key}.resize",
    )
    require(
        not column.resize or column.shape[1:] in ((), column.resize),
        f"{key}.shape and {key}.resize",
        (list(column.shape), list(column.resize)),
        f"both say how high and wide images are: make them equal, or leave {key}.shape out",
    )
    require(
        column.channels is None or not column.shape,
        f"{key}.shape and {key}.channels",
        (list(column.shape), column.channels),
        f"both say how many channels images have: leave {key}.channels out",
    )
    at_least(f"{key}.crop", column.crop, 0)
    require(
        column.sizes != "own" or column.may_keep_sizes,
        f"{key}.sizes",
        column.sizes,
        "images that keep their own sizes have no shape, resize, mean image or mean_file: leave these out, or "
        f"{key}.sizes",
    )


def _check_mean_and_std(column: DataColumn, key: str) -> None:
    means = [column.mean is not None, bool(column.mean_values), bool(column.mean_file)]
    require(
        sum(means) <= 1,
        f"{key}.mean, {key}.mean_values, {key}.mean_file",
        (column.mean, list(column.mean_values), column.mean_file),
        "at most one can be given",
    )
    require(
        not column.std_values or column.std == "none",
        f"{key}.std and {key}.std_values",
        (column.std, list(column.std_values)),
        "at most one can be given",
    )
    require(
        all(value > 0 for value in column.std_values),
        f"{key}.std_values",
        list(column.std_values),
        "inputs are divided by them: each must exceed 0",
    )
    require(column.scale != 0, f"{key}.scale", column.scale, "0 would erase every input; 1 leaves it as it is")


@dataclass(frozen=True, kw_only=True, slots=True)
class Beside:
    """A further source whose rows go with those of `data.source`, the first with the first: `[data.beside.NAME]`.

    NAME is the name of its column among the others.
    """

    source: str
    """The format of the rows."""
    path: str = ""
    """Of the training rows, as many as `data.path` has."""
    validation_path: str = ""
    """Of the validation rows, as many as `data.validation_path` has."""
    column: str = "image"
    """Which of its columns is taken: `image`, what the records hold, or `label`; of HDF5 files the data set
    of this name."""
    labels: str = ""
    """As `data.labels`."""
    validation_labels: str = ""
    """As `data.validation_labels`."""
    root: str = ""
    """As `data.root`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TestRows:
    """Further rows that are measured whenever the held-out ones are: `[data.tests.NAME]`.

    Their measures are called `NAME/measure`. A Caffe net judges them by the layers of its phase TEST in stage NAME.
    """

    __test__ = False  # no test of pytest's

    path: str = ""
    """Of the rows, in the format of `data.source`; not given: the held-out rows once more."""
    beside: dict[str, str] = field(default_factory=dict[str, str])
    """By name in `data.beside` the path of the rows that go with them."""
    batches: int | None = None
    """As `run.eval_batches`, of these."""

    def check(self, key: str, beside: Collection[str]) -> None:
        """Hold the values against those of section `data`.

        Args:
            key: where they stand, `data.tests.NAME`.
            beside: the sources that the rows of `data.source` go with.

        Raises:
            ConfigError: naming key, value and rule.
        """
        if self.batches is not None:
            at_least(f"{key}.batches", self.batches, 1)
        wanted = sorted(beside) if self.path else []
        require(
            sorted(self.beside) == wanted,
            f"{key}.beside",
            sorted(self.beside),
            f"rows that are read in step have a path of each source ({', '.join(wanted) or 'none'}): set these",
        )
