"""Spark's exceptions, with a JVM stack trace in each, turned into one sentence of ours."""

import re
import sys
from collections.abc import Generator
from contextlib import contextmanager

from py4j.protocol import Py4JError
from pyspark.errors import AnalysisException, PySparkException, PythonException

from sparknet.errors import (
    CheckpointError,
    ClusterError,
    ConfigError,
    DataError,
    MissingDependency,
    NetError,
    SparkNetError,
)

__all__ = ["lacks_file_system", "spark_errors"]

_OURS: dict[str, type[SparkNetError]] = {
    kind.__name__: kind for kind in (CheckpointError, ConfigError, DataError, MissingDependency, NetError)
}
_RAISED_BY_US = re.compile(rf"sparknet\.errors\.({'|'.join(_OURS)}): (.+)")
_LACKING = re.compile(r"ModuleNotFoundError: No module named '(sparknet|torch|safetensors|filelock|google)\b")
_UNREADABLE_FILE = "[FAILED_READ_FILE"
_RAISED_BY_A_ROW = "USER_RAISED_EXCEPTION"
"""Spark's name for what `raise_error` raises in a query."""


def lacks_file_system(error: Exception) -> bool:
    """Whether Hadoop says that it has no library for the scheme of a path."""
    return any(sign in str(error) for sign in ("No FileSystem for scheme", "S3AFileSystem not found"))


@contextmanager
def spark_errors(doing: str) -> Generator[None]:
    """Translate what Spark raises inside the block.

    Args:
        doing: what the block does, for the message ("preparing the data").

    Raises:
        SparkNetError: what our own code raised on a worker, with its message; what a query raised
            for a row; or a query or file that Spark refuses.
        ClusterError: everything else, with Spark's own exception as its cause.
    """
    try:
        yield
    except (PySparkException, Py4JError) as error:
        # What `raise_error` said is a parameter of Spark's error, whose own text wraps it in an error class and a
        # stack.
        if isinstance(error, PySparkException) and error.getCondition() == _RAISED_BY_A_ROW:
            said = (error.getMessageParameters() or {})["errorMessage"]
            raise DataError(" ".join(said.split())) from None
        # An exception that a worker raised arrives as text alone, inside Spark's own: class and message are a line
        # of it.
        text = str(error)
        ours = _RAISED_BY_US.search(text)
        if ours:
            # the stack trace of the JVM says nothing that the message does not
            raise _OURS[ours[1]](ours[2].strip()) from None
        if lacking := _LACKING.search(text):
            raise MissingDependency(
                f"{doing}: the Python of a worker has no module {lacking[1]}; Spark starts workers with `python3` "
                f"where nothing else is said: set PYSPARK_PYTHON to {sys.executable}, or to where that environment "
                "is on the workers, before the session is opened"
            ) from None
        # A query or file that Spark will not take is refused before any task has run: the data are at fault, not
        # the cluster.
        if isinstance(error, AnalysisException) or _UNREADABLE_FILE in text:
            raise DataError(f"{doing}: Spark refused: {_sentence(text)}; correct the source") from None
        lines = text.strip().splitlines() or [repr(error)]
        # a Python worker's traceback ends with what happened, Spark's own messages begin with it
        line = lines[-1] if isinstance(error, PythonException) else lines[0]
        raise ClusterError(
            f"{doing} failed in Spark: {line.strip()}; see the executor's log, then run again"
        ) from error


def _sentence(text: str) -> str:
    condition = text.find("[")
    return text[max(condition, 0) :].splitlines()[0].strip()
