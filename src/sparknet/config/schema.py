"""What a run can be told: one frozen dataclass per section of the TOML file.

Cross-field rules stand in each section's `__post_init__`, so that no invalid configuration can exist.
"""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Literal

from sparknet.errors import ConfigError

__all__ = ["Cluster", "Data", "Net", "OuterOptimiser", "Run", "RunConfig", "Solver", "Sync"]


Scalar = bool | int | float | str


def _require(holds: bool, key: str, value: object, rule: str) -> None:
    if not holds:
        raise ConfigError(f"{key} is {value!r}; {rule}")


def _at_least(key: str, value: float, least: float) -> None:
    _require(value >= least, key, value, f"it must be at least {least:g}: set {key}")


def _all_finite(section: str, values: Any) -> None:
    # TOML can say nan and inf. inf is above every bound and nan is not 0: the other checks would let them pass.
    for setting in dataclasses.fields(values):
        value = getattr(values, setting.name)
        if isinstance(value, float):
            _require(math.isfinite(value), f"{section}.{setting.name}", value, "it must be a finite number")


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """How long to train, with how many workers, and what to keep."""

    name: str = "run"
    """Names the run directory when none is given: `runs/<name>-<time>`."""
    seed: int = 0
    """Seeds weights, sampling order, split and dropout; the same seed gives the same run."""
    workers: int = 2
    """Replicas, one Spark task each."""
    min_workers: int = 1
    """Start with so many when `cluster.start_seconds` have passed; fewer fails the run."""
    rounds: int | None = None
    """Rounds to train; give this or `epochs`."""
    epochs: float | None = None
    """Passes over the training rows, rounded up to whole rounds; give this or `rounds`."""
    eval_every: int = 10
    """Rounds between validations; the last round is always validated. 0: only the last."""
    eval_first: bool = False
    """Validate the initial weights too, before the first round."""
    eval_batches: int | None = None
    """Batches of a validation, over the rows from the first on and round again; not given: every row once."""
    checkpoint_every: int = 10
    """Rounds between checkpoints; the last round always gets one. 0: only the last."""
    keep_checkpoints: int = 3
    """Checkpoints kept, newest first; at least 2, so that a damaged one has a predecessor."""

    def __post_init__(self) -> None:
        _all_finite("run", self)
        _at_least("run.seed", self.seed, 0)
        _at_least("run.workers", self.workers, 1)
        _at_least("run.min_workers", self.min_workers, 1)
        _require(
            self.min_workers <= self.workers,
            "run.min_workers",
            self.min_workers,
            f"it must not exceed run.workers, which is {self.workers}",
        )
        _require(
            (self.rounds is None) != (self.epochs is None),
            "run.rounds and run.epochs",
            (self.rounds, self.epochs),
            "exactly one must be given: set run.rounds or run.epochs",
        )
        if self.rounds is not None:
            _at_least("run.rounds", self.rounds, 1)
        if self.epochs is not None:
            _require(self.epochs > 0, "run.epochs", self.epochs, "it must be more than 0")
        _at_least("run.eval_every", self.eval_every, 0)
        if self.eval_batches is not None:
            _at_least("run.eval_batches", self.eval_batches, 1)
        _at_least("run.checkpoint_every", self.checkpoint_every, 0)
        _at_least("run.keep_checkpoints", self.keep_checkpoints, 2)
        # It becomes part of a path.
        safe = self.name.replace("-", "").replace("_", "").replace(".", "").isalnum()
        _require(safe, "run.name", self.name, "it must be letters, digits, dots, dashes and underscores")


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
        _all_finite("data", self)
        # Exactly one: of two it would not be plain which rows a result is of, and without any there is no result.
        ways = [bool(self.validation_path), bool(self.validation_column), self.validation_fraction != 0]
        _require(
            sum(ways) == 1,
            "data.validation_path, data.validation_column, data.validation_fraction",
            (self.validation_path, self.validation_column, self.validation_fraction),
            "exactly one must be given: set one of them",
        )
        _require(
            0 <= self.validation_fraction < 1,
            "data.validation_fraction",
            self.validation_fraction,
            "it must be at least 0 and below 1",
        )
        _require(all(size >= 1 for size in self.shape), "data.shape", self.shape, "every size must be at least 1")
        if self.classes is not None:
            _at_least("data.classes", self.classes, 2)
        _require(self.shard_megabytes > 0, "data.shard_megabytes", self.shard_megabytes, "it must exceed 0")
        _require(self.scale != 0, "data.scale", self.scale, "0 would erase every input; 1 leaves it as it is")
        _check_images(self)
        _check_mean_and_std(self)


def _check_images(data: Data) -> None:
    _require(
        len(data.resize) in (0, 2) and all(size >= 1 for size in data.resize),
        "data.resize",
        list(data.resize),
        "it must be [height, width], both at least 1",
    )
    _require(
        not data.resize or data.shape[1:] in ((), data.resize),
        "data.shape and data.resize",
        (list(data.shape), list(data.resize)),
        "both say how high and wide images are: make them equal, or leave data.shape out",
    )
    _at_least("data.crop", data.crop, 0)
    _require(
        not data.features or not (data.crop or data.mirror or data.resize),
        "data.features",
        list(data.features),
        "what they make is no image: leave data.resize, data.crop and data.mirror out",
    )
    _at_least("data.threads", data.threads, 1)
    _require(0 <= data.corrupt_share <= 1, "data.corrupt_share", data.corrupt_share, "it is a share: from 0 to 1")
    _require(
        not data.validation_labels or bool(data.validation_path),
        "data.validation_labels",
        data.validation_labels,
        "they belong to data.validation_path: set it too",
    )
    _require(
        not data.features or data.image == "image",
        "data.image and data.features",
        (data.image, list(data.features)),
        "one of them says what the input is: leave the other out",
    )


def _check_mean_and_std(data: Data) -> None:
    means = [data.mean is not None, bool(data.mean_values), bool(data.mean_file)]
    _require(
        sum(means) <= 1,
        "data.mean, data.mean_values, data.mean_file",
        (data.mean, list(data.mean_values), data.mean_file),
        "at most one can be given",
    )
    _require(
        not data.std_values or data.std == "none",
        "data.std and data.std_values",
        (data.std, list(data.std_values)),
        "at most one can be given",
    )
    _require(
        all(value > 0 for value in data.std_values),
        "data.std_values",
        list(data.std_values),
        "inputs are divided by them: each must exceed 0",
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Net:
    """Which module to train: `name` or `prototxt`."""

    name: str = ""
    """An entry of the zoo (`lenet`), or `package.module:callable` returning an `nn.Module` or a `NetSpec`."""
    prototxt: str = ""
    """A Caffe net: path of a prototxt file, or its text."""
    weights: str = ""
    """Caffe weights to start from, into layers of the same names: caffemodel files, separated by commas."""
    arguments: dict[str, bool | int | float | str] = field(default_factory=dict[str, bool | int | float | str])
    """Keyword arguments of the callable."""
    channels_last: bool = False
    """Keep images in channels-last memory order, which convolutions on CPUs often prefer."""

    def __post_init__(self) -> None:
        _require(
            bool(self.name) != bool(self.prototxt),
            "net.name and net.prototxt",
            (self.name, _shortened(self.prototxt)),
            "exactly one must be given: a zoo entry or callable, as in net.name='lenet', or a Caffe file",
        )
        # Refused rather than passed over: who sets them expects an effect.
        _require(
            not self.arguments or not self.prototxt,
            "net.arguments",
            self.arguments,
            "a prototxt takes none: leave them out",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Solver:
    """The inner optimiser: SGD with a rate that is a function of the iteration, or a Caffe solver."""

    prototxt: str = ""
    """A Caffe solver: path of a prototxt file, or its text. Besides it set only `batch_size` and `snapshot`."""
    snapshot: str = ""
    """A .solverstate (or .solverstate.h5) of that solver to go on from, at its iteration."""
    batch_size: int = 64
    """Rows per step and worker."""
    learning_rate: float = 0.01
    """Base rate."""
    momentum: float = 0.9
    """Momentum of the inner SGD."""
    weight_decay: float = 0.0
    """L2 penalty added to the gradient."""
    policy: Literal["fixed", "step", "cosine"] = "fixed"
    """Rate over iterations (one iteration = one local step): constant, stepped down, or half a cosine."""
    gamma: float = 0.1
    """Policy step: the factor at each step."""
    step_size: int | None = None
    """Policy step: iterations between steps."""

    def __post_init__(self) -> None:
        _all_finite("solver", self)
        if self.prototxt:
            _leave_to_prototxt(self)
        _require(
            not self.snapshot or bool(self.prototxt),
            "solver.snapshot",
            self.snapshot,
            "it belongs to a Caffe solver: set solver.prototxt",
        )
        _at_least("solver.batch_size", self.batch_size, 1)
        _require(self.learning_rate > 0, "solver.learning_rate", self.learning_rate, "it must exceed 0")
        _require(0 <= self.momentum < 1, "solver.momentum", self.momentum, "it must be at least 0 and below 1")
        _at_least("solver.weight_decay", self.weight_decay, 0)
        if self.policy == "step":
            _require(
                self.step_size is not None and self.step_size >= 1,
                "solver.step_size",
                self.step_size,
                "policy step needs it, at least 1: set solver.step_size",
            )


def _leave_to_prototxt(solver: Solver) -> None:
    for setting in dataclasses.fields(solver):
        value = getattr(solver, setting.name)
        # Told by the default: a value that is set to just that does no harm, as the file's own still counts.
        if setting.name not in ("prototxt", "snapshot", "batch_size") and value != setting.default:
            raise ConfigError(
                f"solver.{setting.name} is {value!r}; solver.prototxt says how to optimise: set it in that file, "
                "or leave solver.prototxt out"
            )


def _shortened(text: str) -> str:
    """The first line of what may be a whole file."""
    lines = text.strip().splitlines()
    return f"{lines[0]} ..." if len(lines) > 1 else text


@dataclass(frozen=True, kw_only=True, slots=True)
class OuterOptimiser:
    """SGD on the averaged weights; rate 1 without momentum is plain averaging."""

    learning_rate: float
    momentum: float
    nesterov: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Sync:
    """When and how the replicas agree."""

    strategy: Literal["average", "diloco", "none"] = "average"
    """Average the weights, step an outer optimiser on their mean, or train each replica by itself."""
    local_steps: int = 10
    """Steps between synchronisations (τ in SparkNet, H in DiLoCo)."""
    pace: Literal["fixed", "balanced"] = "fixed"
    """Every worker `local_steps` steps, or each as many as fit the median worker's time for them."""
    outer_learning_rate: float | None = None
    """Strategy diloco only; its preset is 0.7."""
    outer_momentum: float | None = None
    """Strategy diloco only; its preset is 0.9."""
    outer_nesterov: bool | None = None
    """Strategy diloco only; its preset is true."""
    inner_state: Literal["keep", "reset"] = "keep"
    """The inner optimiser's momentum after a synchronisation: stays with its worker, or starts at zero."""

    def __post_init__(self) -> None:
        _all_finite("sync", self)
        _at_least("sync.local_steps", self.local_steps, 1)
        # None and not the presets as defaults: else nobody could tell a preset from what was set in vain.
        given = {
            "sync.outer_learning_rate": self.outer_learning_rate,
            "sync.outer_momentum": self.outer_momentum,
            "sync.outer_nesterov": self.outer_nesterov,
        }
        for key, value in given.items():
            _require(
                value is None or self.strategy == "diloco",
                key,
                value,
                f"strategy {self.strategy} has no outer optimiser: set sync.strategy='diloco'",
            )
        # What comes out is checked, presets filled in.
        outer = self.outer
        _require(outer.learning_rate > 0, "sync.outer_learning_rate", outer.learning_rate, "it must be more than 0")
        _require(
            0 <= outer.momentum < 1,
            "sync.outer_momentum",
            outer.momentum,
            "it must be at least 0 and below 1",
        )

    @property
    def outer(self) -> OuterOptimiser:
        """The outer optimiser that the strategy stands for, presets filled in."""
        if self.strategy != "diloco":
            return OuterOptimiser(learning_rate=1.0, momentum=0.0, nesterov=False)
        return OuterOptimiser(
            learning_rate=0.7 if self.outer_learning_rate is None else self.outer_learning_rate,
            momentum=0.9 if self.outer_momentum is None else self.outer_momentum,
            nesterov=True if self.outer_nesterov is None else self.outer_nesterov,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    """Spark, deadlines and security."""

    master: str = ""
    """Spark master URL; not given: one embedded session with a core per worker."""
    driver_host: str = ""
    """Address of this machine that workers can reach; not given: what Spark itself uses."""
    heartbeat_timeout_seconds: float = 2.0
    """Silence after which a worker counts as dead and the others go on."""
    hang_seconds: float = 600.0
    """Without progress for so long a worker is replaced although it beats; longer than any step or upload."""
    grace_seconds: float = 30.0
    """How long the others wait for a straggler after the median worker is ready."""
    start_seconds: float = 300.0
    """How long the first round waits for all workers before it makes do with `run.min_workers`."""
    exchange_seconds: float = 120.0
    """Bound on one all-reduce over the network."""
    task_failures: int = 16
    """How often one worker may fail before the run fails; for sessions opened here."""
    threads_per_worker: int = 1
    """Threads that a worker's tensor operations may use."""
    spark_log_level: Literal["OFF", "FATAL", "ERROR", "WARN", "INFO"] = "WARN"
    """What Spark itself writes to `spark.log` in the run directory, for sessions opened here."""
    tls_certificate: str = ""
    """PEM file: the driver service's certificate (chain), also what the workers trust."""
    tls_key: str = ""
    """PEM file: the certificate's private key; it never leaves the driver."""

    def __post_init__(self) -> None:
        _all_finite("cluster", self)
        for key in (
            "heartbeat_timeout_seconds",
            "hang_seconds",
            "grace_seconds",
            "start_seconds",
            "exchange_seconds",
        ):
            value: float = getattr(self, key)
            _require(value > 0, f"cluster.{key}", value, "it must be more than 0 seconds")
        _at_least("cluster.task_failures", self.task_failures, 1)
        _at_least("cluster.threads_per_worker", self.threads_per_worker, 1)
        # One of them alone would leave the service without TLS, against what was plainly wanted.
        _require(
            bool(self.tls_certificate) == bool(self.tls_key),
            "cluster.tls_certificate and cluster.tls_key",
            (self.tls_certificate, self.tls_key),
            "TLS needs both: set the other one too",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """Everything about a run; `write_config` puts it into the run directory as resolved."""

    data: Data
    net: Net
    run: Run
    solver: Solver = field(default_factory=Solver)
    sync: Sync = field(default_factory=Sync)
    cluster: Cluster = field(default_factory=Cluster)

    def __post_init__(self) -> None:
        _require(
            not (self.net.weights and self.solver.snapshot),
            "net.weights and solver.snapshot",
            (self.net.weights, self.solver.snapshot),
            "a snapshot brings its own weights: give one of the two",
        )
