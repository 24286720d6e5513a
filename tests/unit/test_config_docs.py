"""The documentation is held to the code: configuration keys and event kinds."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

from sparknet.reporting import story, training_log

ROOT = Path(__file__).parents[2]
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
