"""Where rows come from, and how they reach the net."""

from dataclasses import dataclass, field
from typing import Literal

from sparknet.config.rules import all_finite, at_least, require

__all__ = ["Beside", "Data", "DataColumn"]


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
    keep: Literal["pixels", "encoded"] = "pixels"
    """As `data.keep`."""
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Data:
    """Where the rows come from and how they reach the net."""

    source: str
    """The format of the rows, one of those in the table below the keys."""
    path: str = ""
    """File, glob or directory of the training rows, local or a URI (`s3://bucket/key`, `hdfs://host:port/path`);
    digits needs none."""
    validation_path: str = ""
    """A second source of the same kind for validation; a standard directory gives its test files."""
    validation_column: str = ""
    """A boolean column that marks validation rows."""
    validation_fraction: float = 0.0
    """Share of the rows held out, drawn with `run.seed`; 0 for one of the other two ways."""
    labels: str = ""
    """Source image_tar: the file of lines `NAME LABEL`; not given: `train.txt` beside the tar files or above."""
    validation_labels: str = ""
    """The same for `validation_path`; not given: `val.txt`."""
    header: bool = True
    """Source csv: the first line names the columns; if not, they are `_c0`, `_c1` and so on."""
    s3_endpoint: str = ""
    """URL of an S3-compatible server; not given: AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL, else AWS itself."""
    image: str = "image"
    """The column that is the net's input."""
    features: tuple[str, ...] = ()
    """In place of `image`: columns of numbers, vectors or words that make up one input vector in this order; words
    become one number per word seen, 1 for it and 0 for the others. `["*"]` is every column but the label."""
    label: str = "label"
    """The column that holds the class: an integer from 0, or a word, which is numbered in alphabetical order."""
    inputs: tuple[str, ...] = ()
    """In place of `image` or `features`: columns that the net is given, by the names of its `forward` parameters
    where all of them fit, else in this order; a Caffe net by blob name. `features` may be one of them."""
    targets: tuple[str, ...] = ()
    """In place of `label`: columns that the loss is given."""
    weight: str = ""
    """A column of numbers from 0 on, the weight of each row in loss and measures; not given: all count alike."""
    columns: dict[str, DataColumn] = field(default_factory=dict[str, DataColumn])
    """What a column is, where its type does not tell or several images are treated differently. The keys of this
    section from `shape` to `mirror` say it where the net has one input."""
    beside: dict[str, Beside] = field(default_factory=dict[str, Beside])
    """Further sources that are read in step with this one, each giving one more column."""
    shape: tuple[int, ...] = ()
    """Shape of one input row, (channels, height, width) for images; () takes what the source says."""
    classes: int | None = None
    """Labels must be below this; not given: one more than the largest label seen."""
    resize: tuple[int, ...] = ()
    """Height and width that encoded images (JPEG, PNG) are brought to; not given: all must be of one size."""
    resize_mode: Literal["exact", "shorter_side"] = "exact"
    """Stretch to that size, or keep the proportions: the image just covers it, and its middle is cut out."""
    channel_order: Literal["rgb", "bgr"] | None = None
    """Of encoded images when decoded; not given: rgb, and with `net.prototxt` bgr, as Caffe has it."""
    keep: Literal["pixels", "encoded"] = "pixels"
    """What shards hold of encoded images: pixels, which are read fastest, or the files, which are several times
    smaller and decoded whenever they are read."""
    corrupt_share: float = 0.01
    """Rows that are damaged (a tar member cut short, bytes that are no image) are counted, named and left out; a
    greater share of them is an error."""
    mean: Literal["none", "channel", "image"] | None = None
    """Subtracted from the input: nothing, or the training rows' mean per channel or per pixel. Not given: channel,
    unless `mean_values` or `mean_file` is, and with `net.prototxt` what the net's data layers say."""
    mean_values: tuple[float, ...] = ()
    """Subtracted instead: one number, or one per channel."""
    mean_file: str = ""
    """Subtracted instead: a mean image, Caffe's `binaryproto` or numpy's `.npy`."""
    scale: float = 1.0
    """The input is multiplied by this after the mean is taken off; 0.00390625 maps bytes to 0..1."""
    std: Literal["none", "channel"] = "none"
    """Then divided by nothing, or by the training rows' standard deviation per channel (after the same scale)."""
    std_values: tuple[float, ...] = ()
    """Divided by these instead: one number, or one per channel, in units of the scaled input."""
    crop: int = 0
    """Side of the square cut out of images: at random in training, from the middle in tests; 0: the whole image."""
    mirror: bool = False
    """Training images are mirrored left to right with probability 1/2."""
    threads: int = 1
    """Threads of a worker that decode, cut and normalise beside its training step."""
    store: str = ""
    """Directory of the prepared shards, reached by every worker; not given: `store` in the run directory."""
    shard_megabytes: float = 256.0
    """Size at which a shard is closed, in MB of rows."""

    def __post_init__(self) -> None:
        all_finite("data", self)
        # Exactly one: of two it would not be plain which rows a result is of, and without any there is no result.
        ways = [bool(self.validation_path), bool(self.validation_column), self.validation_fraction != 0]
        require(
            sum(ways) == 1,
            "data.validation_path, data.validation_column, data.validation_fraction",
            (self.validation_path, self.validation_column, self.validation_fraction),
            "exactly one must be given: set one of them",
        )
        require(
            0 <= self.validation_fraction < 1,
            "data.validation_fraction",
            self.validation_fraction,
            "it must be at least 0 and below 1",
        )
        require(all(size >= 1 for size in self.shape), "data.shape", self.shape, "every size must be at least 1")
        if self.classes is not None:
            at_least("data.classes", self.classes, 2)
        require(self.shard_megabytes > 0, "data.shard_megabytes", self.shard_megabytes, "it must exceed 0")
        require(self.scale != 0, "data.scale", self.scale, "0 would erase every input; 1 leaves it as it is")
        _check_images(self)
        _check_mean_and_std(self)


def _check_images(data: Data) -> None:
    require(
        len(data.resize) in (0, 2) and all(size >= 1 for size in data.resize),
        "data.resize",
        list(data.resize),
        "it must be [height, width], both at least 1",
    )
    require(
        not data.resize or data.shape[1:] in ((), data.resize),
        "data.shape and data.resize",
        (list(data.shape), list(data.resize)),
        "both say how high and wide images are: make them equal, or leave data.shape out",
    )
    at_least("data.crop", data.crop, 0)
    require(
        not data.features or not (data.crop or data.mirror or data.resize),
        "data.features",
        list(data.features),
        "what they make is no image: leave data.resize, data.crop and data.mirror out",
    )
    at_least("data.threads", data.threads, 1)
    require(0 <= data.corrupt_share <= 1, "data.corrupt_share", data.corrupt_share, "it is a share: from 0 to 1")
    require(
        not data.validation_labels or bool(data.validation_path),
        "data.validation_labels",
        data.validation_labels,
        "they belong to data.validation_path: set it too",
    )
    require(
        not data.features or data.image == "image",
        "data.image and data.features",
        (data.image, list(data.features)),
        "one of them says what the input is: leave the other out",
    )


def _check_mean_and_std(data: Data) -> None:
    means = [data.mean is not None, bool(data.mean_values), bool(data.mean_file)]
    require(
        sum(means) <= 1,
        "data.mean, data.mean_values, data.mean_file",
        (data.mean, list(data.mean_values), data.mean_file),
        "at most one can be given",
    )
    require(
        not data.std_values or data.std == "none",
        "data.std and data.std_values",
        (data.std, list(data.std_values)),
        "at most one can be given",
    )
    require(
        all(value > 0 for value in data.std_values),
        "data.std_values",
        list(data.std_values),
        "inputs are divided by them: each must exceed 0",
    )
