"""The configuration of a run: frozen dataclasses, read from TOML, overridden by `section.key=value`."""

from sparknet.config.codec import decode, encode
from sparknet.config.files import load_config, override, write_config
from sparknet.config.schema import (
    Cluster,
    Data,
    Net,
    Run,
    RunConfig,
    Solver,
    Sync,
)

__all__ = [
    "Cluster",
    "Data",
    "Net",
    "Run",
    "RunConfig",
    "Solver",
    "Sync",
    "decode",
    "encode",
    "load_config",
    "override",
    "write_config",
]
