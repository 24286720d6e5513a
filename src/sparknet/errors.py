"""The exception tree. Every message says the value, the rule and the remedy.

SparkNetError                exit code 1
├── UsageError               exit code 2: the command or the configuration is at fault
│   ├── ConfigError          an unknown key or a bad value
│   └── MissingDependency    a package or Java that this feature needs is not installed
├── DataError                a source, a shard or a manifest that cannot be read
│   └── BadImage             bytes that are no image, or not a whole one
├── NetError                 a net that cannot be found, built or fed
├── TrainingDiverged         a loss or a weight that is no longer finite
├── CheckpointError          a checkpoint or model that cannot be written or read
├── RunDirError              a run directory that cannot be used
├── ClusterError             Spark, the driver service or the network between them
│   └── Unauthorized         the bearer token was missing or wrong
└── WorkerError              a worker failed: names worker, host, phase and cause
"""

__all__ = [
    "BadImage",
    "CheckpointError",
    "ClusterError",
    "ConfigError",
    "DataError",
    "MissingDependency",
    "NetError",
    "RunDirError",
    "SparkNetError",
    "TrainingDiverged",
    "Unauthorized",
    "UsageError",
    "WorkerError",
]


class SparkNetError(Exception):
    """Base of everything this package raises on purpose; `exit_code` is what the command line ends with."""

    exit_code = 1


class UsageError(SparkNetError):
    """The command line was used wrongly."""

    exit_code = 2


class ConfigError(UsageError):
    """A configuration key is unknown or its value breaks a rule."""


class MissingDependency(UsageError):
    """Something that must be installed is not; the message names the command that installs it."""


class DataError(SparkNetError):
    """A data source, a shard or a manifest cannot be read, or holds what it must not."""


class BadImage(DataError):
    """Bytes that are no image, or not a whole one: the row is left out and counted, up to `data.corrupt_share`."""


class NetError(SparkNetError):
    """A net cannot be found, built or fed."""


class TrainingDiverged(SparkNetError):
    """A loss, a weight or a delta is not finite."""


class CheckpointError(SparkNetError):
    """A checkpoint or a model cannot be written, read or trusted."""


class RunDirError(SparkNetError):
    """The run directory cannot be created, is in use, or holds no run."""


class ClusterError(SparkNetError):
    """Spark, the driver service or the network between driver and workers failed."""


class Unauthorized(ClusterError):
    """The driver service refused the bearer token."""


class WorkerError(SparkNetError):
    """A worker failed and cannot be helped by a retry; `trace` is the way to it, as Python prints it, if known."""

    def __init__(self, *, slot: int, host: str, phase: str, cause: str, trace: str = "") -> None:
        super().__init__(f"worker {slot} on {host} failed while {phase}: {cause}")
        self.slot = slot
        self.host = host
        self.phase = phase
        self.cause = cause
        self.trace = trace
