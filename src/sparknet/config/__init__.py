"""The configuration of a run: frozen dataclasses, read from TOML, overridden by `section.key=value`."""

from sparknet.config.codec import decode, encode
from sparknet.config.files import load_config, override, write_config
from sparknet.config.schema import RunConfig
from sparknet.config.sections.cluster import Cluster
from sparknet.config.sections.data import Data
from sparknet.config.sections.data_column import Beside, DataColumn, TestRows
from sparknet.config.sections.net import Net
from sparknet.config.sections.objective import Measure, Objective
from sparknet.config.sections.run import EarlyStop, Run
from sparknet.config.sections.solver import ParameterGroup, Solver
from sparknet.config.sections.sync import OuterOptimiser, Sync
from sparknet.config.sections.windows import Windows

__all__ = [
    "Beside",
    "Cluster",
    "Data",
    "DataColumn",
    "EarlyStop",
    "Measure",
    "Net",
    "Objective",
    "OuterOptimiser",
    "ParameterGroup",
    "Run",
    "RunConfig",
    "Solver",
    "Sync",
    "TestRows",
    "Windows",
    "decode",
    "encode",
    "load_config",
    "override",
    "write_config",
]
