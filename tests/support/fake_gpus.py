"""A driver's program that tells of GPUs which nobody has built in, for processes that are started with its PATH."""

import os
from pathlib import Path

import pytest


def tell_of_gpus(directory: Path, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Put such a program first on the PATH; lock files go to the same directory."""
    lines = "".join(f"echo '{at}, Tesla T4, 15360 MiB, 550.54.15, GPU-abc{at}'\n" for at in range(count))
    program = directory / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{lines}")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("TMPDIR", str(directory))
    for name in ("CUDA_VISIBLE_DEVICES", "GPU_HOSTS", "Redis"):
        monkeypatch.delenv(name, raising=False)
