"""What is asked of an inference: which columns, and how the rows go through the net."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from sparknet.config import Cluster
from sparknet.config.rules import at_least, require

__all__ = ["InferenceSettings", "Wanted"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """Columns to add, in the order of pyspark.ml's classifiers; one with an empty name is left out."""

    raw: str = ""
    """ML vector: the net's output as it is, flattened."""
    probability: str = ""
    """ML vector: of each class, or of each of several things that may be true at once."""
    prediction: str = ""
    """double: the class as the label column has it, of words its number; or the number that the net gives. Where a
    row's target has an axis, array<double>."""
    predicted_label: str = ""
    """string: the name of the predicted class, where classes have names."""
    blobs: Mapping[str, str] = field(default_factory=dict[str, str])
    """Blob of a Caffe net, or dotted name of a part of another module -> column: ML vector, flattened."""

    @property
    def names(self) -> list[str]:
        """The columns in their order."""
        named = (self.raw, self.probability, self.prediction, self.predicted_label, *self.blobs.values())
        return [name for name in named if name]


@dataclass(frozen=True, kw_only=True, slots=True)
class InferenceSettings:
    """How rows go through the net."""

    batch_size: int = 128
    """Rows of a forward pass."""
    columns: tuple[str, ...] = ()
    """What the net's inputs, in their order, are called in the data; none: as in training."""
    handle_invalid: Literal["error", "skip", "keep"] = "error"
    """Of a row whose inputs are null, cannot be decoded or have another shape: an error that names it, no row, or
    null in all columns that are added."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """As `cluster.device`: a GPU of its own for each Python worker where it can have one, the CPU, or a GPU in any
    case."""
    leases: Literal["auto", "spark", "file", "redis"] = "auto"
    """Who hands out GPUs, as `cluster.leases`."""
    redis: str = ""
    """URL of the server that does, as `cluster.redis`."""
    threads: int = 1
    """Threads of a Python worker that decode images, and those of its tensor operations."""
    code: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """By reference nets and losses that are objects and not names in importable modules."""

    def __post_init__(self) -> None:
        at_least("batch_size", self.batch_size, 1)
        at_least("threads", self.threads, 1)
        choices = ("error", "skip", "keep")
        require(
            self.handle_invalid in choices,
            "handle_invalid",
            self.handle_invalid,
            f"it must be one of {', '.join(choices)}: correct it",
        )

    @property
    def cluster(self) -> Cluster:
        """What concerns devices, as a run's configuration has it."""
        return Cluster(device=self.device, leases=self.leases, redis=self.redis, threads_per_worker=self.threads)
