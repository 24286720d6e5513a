"""Repeated measurements: their medians and spread, bars to hold them against, a table and a dated report."""

import json
import os
import platform
import shlex
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

__all__ = ["Bar", "Series", "print_bars", "print_table", "surroundings", "write_report"]

_PACKAGES = ("sparknet", "torch", "numpy", "pyarrow", "pyspark")
_LSCPU = ("Model name", "CPU(s)", "Thread(s) per core", "L2 cache", "L3 cache", "Hypervisor vendor")


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """One quantity, once per repetition."""

    name: str
    unit: str
    values: tuple[float, ...]
    peer: str = ""
    """Name of the series that `ratios` divides by, repetition by repetition."""
    ratios: tuple[float, ...] = ()

    @property
    def median(self) -> float:
        """Median of the values."""
        return statistics.median(self.values)

    @property
    def ratio(self) -> float:
        """Median of the ratios."""
        return statistics.median(self.ratios)

    def against(self, peer: "Series") -> "Series":
        """The same series with its ratios to a peer that was measured in the same repetitions."""
        ratios = tuple(mine / other for mine, other in zip(self.values, peer.values, strict=False))
        return Series(name=self.name, unit=self.unit, values=self.values, peer=peer.name, ratios=ratios)

    def as_record(self) -> dict[str, Any]:
        """For the report file."""
        record = {"name": self.name, "unit": self.unit, **_summary(self.values)}
        return {**record, "peer": self.peer, "ratio": _summary(self.ratios)} if self.ratios else record


@dataclass(frozen=True, kw_only=True, slots=True)
class Bar:
    """What was promised, and what was found."""

    promise: str
    found: float
    met: bool


def _summary(values: Sequence[float]) -> dict[str, Any]:
    return {
        "median": statistics.median(values),
        "least": min(values),
        "most": max(values),
        "repetitions": len(values),
        "values": list(values),
    }


def print_table(series: Sequence[Series]) -> None:
    """Print a line a series: median, spread, and where there is a peer the ratio to it with its spread."""
    width = max(len(one.name) for one in series)
    print(f"\n{'':{width}}  {'unit':9} {'median':>9} {'least':>9} {'most':>9} {'n':>4}   ratio (least..most) to")
    for one in series:
        figures = f"{one.median:9.3f} {min(one.values):9.3f} {max(one.values):9.3f} {len(one.values):4}"
        ratio = (
            f"   {one.ratio:.3f} ({min(one.ratios):.3f}..{max(one.ratios):.3f}) {one.peer}" if one.ratios else ""
        )
        print(f"{one.name:{width}}  {one.unit:9} {figures}{ratio}")
    print()


def print_bars(bars: Sequence[Bar]) -> None:
    """Print PASS or FALL SHORT for every bar."""
    for bar in bars:
        print(f"{'PASS' if bar.met else 'FALL SHORT':10}  {bar.promise}: {bar.found:.3f}")


def surroundings() -> dict[str, Any]:
    """Date, command, versions and hardware; take it before measuring, for the load it finds."""
    return {
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": shlex.join(["python", *sys.argv]),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
        "hardware": _hardware(),
        "load_average_before": os.getloadavg(),
    }


def _version(package: str) -> str:
    # From a checkout the package itself may not be installed, and a machine with GPUs needs no Spark.
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _hardware() -> dict[str, str]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    found = {"machine": platform.machine(), "kernel": platform.release(), "memory": f"{memory / 2**30:.1f} GiB"}
    if shutil.which("lscpu"):
        told = subprocess.run(["lscpu"], capture_output=True, text=True, check=False, env={"LC_ALL": "C"}).stdout
        lines = (line.partition(":") for line in told.splitlines())
        found |= {name: value.strip() for name, _, value in lines if name in _LSCPU}
    return found


def write_report(
    path: Path | None,
    benchmark: str,
    *,
    around: dict[str, Any],
    settings: dict[str, Any],
    series: Sequence[Series],
    bars: Sequence[Bar],
) -> None:
    """Write a report as JSON and say where; without a path to `runs/benchmarks/<benchmark>-<time>.json`."""
    moment = around["date"].replace(":", "").replace("-", "")[:15]
    path = path or Path("runs") / "benchmarks" / f"{benchmark}-{moment}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    report = {
        "benchmark": benchmark,
        **around,
        "load_average_after": os.getloadavg(),
        "settings": settings,
        "series": [one.as_record() for one in series],
        "bars": [{"promise": bar.promise, "found": bar.found, "met": bar.met} for bar in bars],
    }
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"\nreport: {path}")
