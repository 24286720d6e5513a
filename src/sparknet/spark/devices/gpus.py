"""The GPUs of this host, asked for without touching one.

torch would do, and a process in which it has counted GPUs sees those for ever, whatever CUDA_VISIBLE_DEVICES says
later; so the driver's own program is asked.
"""

import csv
import functools
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Gpu", "host_gpus", "usable_gpus"]

_QUERY = ("index", "name", "memory.total", "driver_version", "uuid")
_PATIENCE_SECONDS = 20.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu:
    """One GPU as the driver's program tells of it."""

    index: str
    name: str
    memory: str
    """With its unit, as it is told."""
    driver: str
    """Version of the driver."""
    uuid: str


@functools.cache
def host_gpus() -> tuple[Gpu, ...]:
    """All GPUs of this host, whoever may use them; none where there is no driver."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    try:
        told = subprocess.run(
            [program, f"--query-gpu={','.join(_QUERY)}", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=True,
            timeout=_PATIENCE_SECONDS,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        # A driver that does not answer has no GPU to offer; `sparknet doctor` shows what it says.
        return ()
    rows = [[cell.strip() for cell in row] for row in csv.reader(told.splitlines()) if len(row) == len(_QUERY)]
    return tuple(
        Gpu(index=index, name=name, memory=memory, driver=driver, uuid=uuid)
        for index, name, memory, driver, uuid in rows
    )


def usable_gpus(visible: str | None, found: Sequence[Gpu] | None = None) -> tuple[str, ...]:
    """Indices of what CUDA_VISIBLE_DEVICES leaves of this host's GPUs, in its order.

    Args:
        visible: the variable's value; None where it is not set.
        found: the host's GPUs; not given: asked for.
    """
    gpus = host_gpus() if found is None else found
    if visible is None:
        return tuple(gpu.index for gpu in gpus)
    named = [name.strip() for name in visible.split(",") if name.strip()]
    # One name for each: of two for the same GPU each would be leased to another worker.
    index_of = {name: gpu.index for gpu in gpus for name in (gpu.index, gpu.uuid)}
    kept: list[str] = []
    for name in named:
        # As CUDA reads it: everything behind a name that is none is not seen.
        if name not in index_of:
            break
        kept.append(index_of[name])
    return tuple(kept)


def visible_devices() -> str | None:
    """The value of CUDA_VISIBLE_DEVICES."""
    return os.environ.get("CUDA_VISIBLE_DEVICES")
