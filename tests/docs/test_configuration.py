"""The documentation is held to the code: configuration keys and event kinds."""

import dataclasses
import importlib.util
import re
import shlex
from types import ModuleType

from places import REPOSITORY
from sparknet.caffe.solver.policies import RatePolicy
from sparknet.caffe.solver.settings import SolverSettings
from sparknet.caffe.solver.update_rule import UpdateRule
from sparknet.cli import main
from sparknet.reporting import story, training_log

ROOT = REPOSITORY
DOCS = ROOT / "docs"


def program(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def documented_kinds() -> set[str]:
    table = (DOCS / "events.md").read_text(encoding="utf-8").split("| kind |")[1]
    return set(re.findall(r"^\| `(\w+)`", table, flags=re.MULTILINE))


def test_the_configuration_page_is_what_the_schema_gives():
    written = (DOCS / "configuration.md").read_text(encoding="utf-8")
    assert written == program("make_configuration").page(), "run: python docs/make_configuration.py"


def test_every_kind_that_is_reported_is_documented():
    reported = set(story._TELLERS) | set(training_log._LINES)  # pyright: ignore[reportPrivateUsage]
    assert reported
    assert reported <= documented_kinds()


def test_every_kind_that_is_written_is_documented():
    source = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py"))
    written = set(re.findall(r"""(?:\b_?emit\(|\b_?tell\(|"event":)\s*"(\w+)\"""", source))
    assert {"round", "worker_lost", "evaluation", "run_started", "checkpoint"} <= written
    assert written <= documented_kinds()


def test_every_command_for_caffe_users_parses():
    text = (DOCS / "caffe.md").read_text(encoding="utf-8")
    commands = re.findall(r"^sparknet (.+)$", text, flags=re.MULTILINE)
    assert len(commands) >= 5
    for command in commands:
        main._parser().parse_args(shlex.split(command))  # pyright: ignore[reportPrivateUsage]


def test_every_solver_field_that_is_read_is_documented():
    text = (DOCS / "caffe.md").read_text(encoding="utf-8")
    table = text.split("| solver | run |")[1].split("\n\n")[0]
    told = set(re.findall(r"`([a-z_0-9]+)`", table))
    read = {field.name for kind in (SolverSettings, RatePolicy, UpdateRule) for field in dataclasses.fields(kind)}
    settings = read - {"policy", "rule", "gamma", "power", "stepsize", "stepvalue"}  # "its constants"
    assert settings <= told
