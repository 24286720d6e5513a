"""Where rows come from, and how they reach the net."""

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Literal

from sparknet.config.rules import all_finite, at_least, require
from sparknet.config.sections.data_column import Beside, DataColumn, TestRows
from sparknet.config.sections.windows import Windows
from sparknet.errors import ConfigError

__all__ = ["Data"]

_FEATURES = "features"
"""The name of the input that `data.features` makes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Data:
    """Where the rows come from and how they reach the net."""

    source: str
    """The format of the rows, one of those in the table below the keys."""
    path: str = ""
    """File, glob or directory of the training rows, local or a URI (`s3://bucket/key`, `hdfs://host:port/path`);
    digits and net need none."""
    validation_path: str = ""
    """A second source of the same kind for validation; a standard directory gives its test files."""
    validation_column: str = ""
    """A boolean column that marks validation rows."""
    validation_fraction: float = 0.0
    """Share of the rows held out, drawn with `run.seed`; 0 for one of the other ways."""
    validation: Literal["none"] | None = None
    """`"none"`: no rows are held out, so that all are trained on, and nothing is measured but the training loss."""
    labels: str = ""
    """Source image_tar: the file of lines `NAME LABEL`; not given: `train.txt` beside the tar files or above."""
    validation_labels: str = ""
    """The same for `validation_path`; not given: `val.txt`."""
    root: str = ""
    """Sources image_list, windows and hdf5: where the relative paths of a list begin; not given: the current
    directory, or the list's own."""
    windows: Windows | None = None
    """Source windows: which windows are rows, and how they are cut out."""
    header: bool | None = None
    """Source csv: whether the first line names the columns; if not, they are `_c0`, `_c1` and so on. Not given: it
    does unless it has numbers in all columns of numbers."""
    separator: str = ""
    """Source csv: the letter between two values. Not given: of comma, semicolon, tab and bar the one that cuts the
    first lines alike."""
    quote: str = '"'
    """Source csv: the letter round values that hold separators or line ends; doubled within."""
    nulls: tuple[str, ...] = ("NA", "N/A", "n/a", "null", "NULL", "None", "NaN", "nan", "-")
    """Source csv: what stands for no value in columns of numbers, beside nothing at all."""
    words: tuple[str, ...] = ()
    """Source csv: columns whose values are words, although all or most of them look like numbers."""
    on_hosts: bool = False
    """The files of `path` and `validation_path` lie on the workers' own disks: under the same absolute path, glob
    or directory each host has others, which its workers read in place. `store` is then a directory of each host."""
    s3_endpoint: str = ""
    """URL of an S3-compatible server; not given: AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL, else AWS itself."""
    image: str = "image"
    """The column that is the net's input."""
    features: tuple[str, ...] = ()
    """In place of `image`: columns of numbers, vectors or words that make up one input vector in this order; words
    become one number per word seen, 1 for it and 0 for the others. `["*"]` is every column but the label."""
    label: str = "label"
    """The column that holds the class: whole numbers (also as 1.0), words, which are numbered in alphabetical
    order, or true and false; or a number that is to be found."""
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
    tests: dict[str, TestRows] = field(default_factory=dict[str, TestRows])
    """Further rows that are measured beside the held-out ones, each by itself."""
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
    channels: Literal["colour", "grey", "stored"] | None = None
    """Of encoded images when decoded, where `shape` does not say it: three, one, or those of the file (one of grey
    images, four of those with transparency), which must be as many in all. Not given: colour, and with
    `net.prototxt` what its data layer says by force_color, force_gray, is_color, or of an LMDB without these,
    stored."""
    keep: Literal["pixels", "encoded"] = "pixels"
    """What shards hold of encoded images: pixels, which are read fastest, or the files, which are several times
    smaller and decoded whenever they are read."""
    sizes: Literal["one", "own"] | None = None
    """Without `resize`: all images must be of one size, or each keeps its own, of which `crop` cuts a square
    whenever the row is read. Not given: own where a square is cut and no mean image is taken off, and with
    `net.prototxt` where its data layers of both phases say so."""
    class_values: Literal["mapped", "stored"] | None = None
    """What becomes of classes that are whole numbers and do not begin at 0, as 1 to 10 or -1 and 1, or leave out
    most of the numbers up to the largest, as 0, 10 and 20: they are numbered from 0 in rising order, and the model
    keeps which is which; or they stay as they are, negative ones too. Not given: mapped, and with `net.prototxt`
    stored."""
    corrupt_share: float = 0.01
    """Rows that are damaged (a tar member cut short, bytes that are no image) are counted, named and left out; a
    greater share of them is an error."""
    mean: Literal["none", "channel", "image"] | None = None
    """Subtracted from the input: nothing, or the training rows' mean per channel or per pixel. Not given: channel,
    unless `mean_values` or `mean_file` is, and with `net.prototxt` what the net's data layers say."""
    mean_values: tuple[float, ...] = ()
    """Subtracted instead: one number, or one per channel."""
    mean_file: str = ""
    """Subtracted: a mean image, Caffe's `binaryproto`, numpy's `.npy` or the first SparkNet's `imagenet.mean`."""
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
    """Where the prepared shards lie: a directory, shared with the workers or of the driver alone, or a URI
    (`s3://bucket/key`, `hdfs://host:port/path`); not given: `store` in the run directory, wherever that is."""
    cache: str = ""
    """Directory in which each host keeps copies of shards that do not lie on a disk of its own or a shared one,
    from `/` or `~` on; not given: XDG_CACHE_HOME, or else the system's directory for temporary files."""
    cache_gigabytes: float | None = None
    """The most that these copies take on a host, in GB; not given: half of what is free on that disk without
    them."""
    shard_megabytes: float = 256.0
    """Size at which a shard is closed, in MB of rows."""

    def __post_init__(self) -> None:
        all_finite("data", self)
        # Exactly one: of two it would not be plain which rows a result is of, and a run without any result must
        # be meant.
        ways = [
            bool(self.validation_path),
            bool(self.validation_column),
            self.validation_fraction != 0,
            self.validation is not None,
        ]
        require(
            sum(ways) == 1 or (self.of_net and not any(ways)),
            "data.validation_path, data.validation_column, data.validation_fraction, data.validation",
            (self.validation_path, self.validation_column, self.validation_fraction, self.validation),
            'exactly one must be given: set one of them; data.validation = "none" holds out nothing',
        )
        require(
            0 <= self.validation_fraction < 1,
            "data.validation_fraction",
            self.validation_fraction,
            "it must be at least 0 and below 1",
        )
        require(
            not self.cache or self.cache.startswith(("/", "~")),
            "data.cache",
            self.cache,
            "a relative path is another directory for each process of a worker: begin it with / or ~",
        )
        require(
            self.cache_gigabytes is None or self.cache_gigabytes > 0,
            "data.cache_gigabytes",
            self.cache_gigabytes,
            "it must exceed 0",
        )
        require(self.shard_megabytes > 0, "data.shard_megabytes", self.shard_megabytes, "it must exceed 0")
        at_least("data.threads", self.threads, 1)
        require(
            0 <= self.corrupt_share <= 1, "data.corrupt_share", self.corrupt_share, "it is a share: from 0 to 1"
        )
        require(
            not self.validation_labels or bool(self.validation_path),
            "data.validation_labels",
            self.validation_labels,
            "they belong to data.validation_path: set it too",
        )
        for key, letter in (("data.separator", self.separator or ","), ("data.quote", self.quote)):
            require(len(letter) == 1, key, letter, "it must be a single letter: set one")
        _check_names(self)
        _check_short_form(self)
        if self.on_hosts:
            _check_on_hosts(self)
        require(
            not self.tests or self.validation is None,
            "data.tests and data.validation",
            (sorted(self.tests), self.validation),
            "they are measured beside held-out rows: hold some out, or leave data.tests out",
        )
        for name, rows in self.tests.items():
            rows.check(f"data.tests.{name}", self.beside)
        for name in self.columns:
            self.columns[name].check(f"data.columns.{name}")

    @property
    def of_net(self) -> bool:
        """Whether the net makes its rows itself, for training and for tests."""
        return self.source == "net"

    @property
    def input_names(self) -> tuple[str, ...]:
        """The columns that the net is given."""
        return self.inputs or ((_FEATURES,) if self.features else (self.image,))

    @property
    def target_names(self) -> tuple[str, ...]:
        """The columns that the loss is given."""
        return self.targets or (self.label,)

    @property
    def column_names(self) -> tuple[str, ...]:
        """Every column once: inputs, targets, weights."""
        weight = (self.weight,) if self.weight else ()
        return tuple(dict.fromkeys((*self.input_names, *self.target_names, *weight)))

    def column(self, name: str) -> DataColumn:
        """What is said of a column: by a table of its own, or in the short form, by the keys of this section."""
        if name in self.columns:
            own = self.columns[name]
            said = {key: getattr(own, key) or getattr(self, key) for key in _OF_ALL}
            return replace(own, **said)
        if self.input_names == (name,):
            return self.short_form
        if self.target_names == (name,):
            return DataColumn(kind=self._category, classes=self.classes)
        return DataColumn(**{key: getattr(self, key) for key in _OF_ALL})

    @property
    def _category(self) -> Literal["category"] | None:
        # The number of classes is asked for of classes alone.
        return "category" if self.classes else None

    @property
    def short_form(self) -> DataColumn:
        """The only input, as the keys of this section describe it."""
        return DataColumn(**{key: getattr(self, key) for key in _SHARED})


_SHARED = (
    "shape",
    "resize",
    "resize_mode",
    "channel_order",
    "channels",
    "keep",
    "sizes",
    "mean",
    "mean_values",
    "mean_file",
    "scale",
    "std",
    "std_values",
    "crop",
    "mirror",
)
"""What both can say: this section of its only input, a column's table of that column."""
_OF_ALL = ("channel_order", "channels")
"""Of these what the section says holds for every column that does not say otherwise."""


def _check_on_hosts(data: Data) -> None:
    require(
        bool(data.store),
        "data.store",
        data.store,
        "with data.on_hosts it is a directory on a disk of each host, for the rows that were read there: name one",
    )
    for key in ("path", "validation_path", "labels", "validation_labels", "root", "store"):
        value = getattr(data, key)
        require(
            not value or value.startswith("/"),
            f"data.{key}",
            value,
            "with data.on_hosts each host looks for it on its own disks: give an absolute path, or leave "
            "data.on_hosts out for files that all hosts reach",
        )
    for key, named in (("beside", data.beside), ("tests", data.tests)):
        require(
            not named,
            f"data.{key}",
            sorted(named),
            "with data.on_hosts there is one source on each host: leave it out",
        )


def _check_names(data: Data) -> None:
    for key, names in (("data.inputs", data.inputs), ("data.targets", data.targets)):
        twice = [name for name, count in Counter(names).items() if count > 1]
        require(not twice, key, list(names), f"{', '.join(twice)} is there twice: name each column once")
    for key, value, short, many in (
        ("data.image", data.image, "image", data.inputs),
        ("data.label", data.label, "label", data.targets),
    ):
        require(
            not many or value == short,
            f"{key} and data.{'inputs' if short == 'image' else 'targets'}",
            (value, list(many)),
            "one of them says which column it is: leave the other out",
        )
    require(
        not data.features or data.image == "image",
        "data.image and data.features",
        (data.image, list(data.features)),
        "one of them says what the input is: leave the other out",
    )
    require(
        not data.features or _FEATURES in data.input_names,
        "data.features and data.inputs",
        (list(data.features), list(data.inputs)),
        f"what data.features makes is the input {_FEATURES!r}: name it in data.inputs",
    )
    others = (*data.input_names, *data.target_names)
    require(
        not data.weight or data.weight not in others,
        "data.weight",
        data.weight,
        "it is an input or a target too; the weight of a row is neither: name another column",
    )
    for name in data.columns:
        known = (*others, data.weight)
        require(
            name in known,
            "data.columns",
            name,
            f"it is none of the columns that are used ({', '.join(filter(None, known))}): name it in data.inputs "
            "or data.targets, or leave its table out",
        )


def _check_short_form(data: Data) -> None:
    inputs, first_target = list(data.input_names), data.target_names[0]
    data.short_form.check("data")
    if data.classes is not None:
        at_least("data.classes", data.classes, 2)
        require(
            len(data.target_names) == 1 and first_target not in data.columns,
            "data.classes",
            data.classes,
            f"it is of the only target, and there are {', '.join(data.target_names)}: set "
            f"data.columns.{first_target}.classes",
        )
    if len(inputs) > 1 or inputs[0] in data.columns:
        nothing = DataColumn()
        for key in _SHARED:
            value = getattr(data, key)
            if key not in _OF_ALL and value != getattr(nothing, key):
                raise ConfigError(
                    f"data.{key} is {value!r}; it is of the only input where no table describes it, and there are "
                    f"{', '.join(inputs)}: set data.columns.{inputs[0]}.{key}"
                )
    require(
        not data.features or not (data.crop or data.mirror or data.resize),
        "data.features",
        list(data.features),
        "what they make is no image: leave data.resize, data.crop and data.mirror out",
    )
