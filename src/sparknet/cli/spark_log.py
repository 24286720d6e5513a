"""Where Spark writes its log in commands that have no run directory."""

import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from sparknet.errors import SparkNetError

__all__ = ["log_of_failures"]


@contextmanager
def log_of_failures(command: str) -> Generator[Path]:
    """A file for Spark's log; it stays only after a failure that it may explain, and the error says where it is.

    Args:
        command: named in the file's directory.
    """
    place = Path(tempfile.mkdtemp(prefix=f"sparknet-{command}-"))
    log, kept = place / "spark.log", False
    try:
        yield log
    except SparkNetError as error:
        # Spark may not have been started when it failed.
        kept = log.exists()
        if kept and str(log) not in str(error):
            error.add_note(f"Spark's own words are in {log}")
        raise
    finally:
        if not kept:
            shutil.rmtree(place, ignore_errors=True)
