"""GPUs that Spark's own resource scheduling has given a task."""

from dataclasses import dataclass

__all__ = ["SparkLease", "spark_gpus", "take_spark_gpu"]


@dataclass(slots=True)
class SparkLease:
    """The address that Spark gave the task: it is the task's own for as long as that runs."""

    gpu: str
    fence: int = 0

    @property
    def valid(self) -> bool:
        """Always: Spark ends the task before it gives the address away."""
        return True

    def release(self) -> None:
        """Spark takes it back itself."""


def spark_gpus() -> tuple[str, ...]:
    """Addresses of the GPUs that Spark has given this task; none outside a task, or where it has none to give."""
    # Imported here: where nobody runs Spark, nobody asks.
    from pyspark import TaskContext

    context = TaskContext.get()
    if context is None:
        return ()
    found = context.resources().get("gpu")
    return tuple(found.addresses) if found is not None else ()


def take_spark_gpu() -> SparkLease | None:
    """The first of them: one replica trains on one device."""
    addresses = spark_gpus()
    return SparkLease(addresses[0]) if addresses else None
