"""The generic loop knows objectives by their Protocol alone, and nothing of Caffe."""

import ast
from pathlib import Path

import sparknet

SOURCES = Path(sparknet.__file__).parent
KINDS = {"CaffeObjective", "ModuleObjective"}
ROOMS = ("training/objectives", "training/caffe_runs")
"""Where objectives are made, and where runs are of Caffe's files."""
DOOR = "sparknet.training.caffe_runs.open_run"
"""Reads a configuration's files and chooses the hook: all that the loop calls there."""
LOOP = ("spark", "training/coordination", "training/sync", "training/worker", "training/run_files")


def files_under(*rooms: str) -> list[Path]:
    return [path for room in rooms for path in sorted((SOURCES / room).rglob("*.py"))]


def questions(path: Path) -> list[str]:
    """Places that ask of which kind an objective is."""
    found: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.Call(func=ast.Name(id="isinstance" | "issubclass"), args=[_, kinds]):
                asked: ast.AST = kinds
            case ast.MatchClass(cls=kinds):
                asked = kinds
            case _:
                continue
        named = {part.id for part in ast.walk(asked) if isinstance(part, ast.Name)}
        named |= {part.attr for part in ast.walk(asked) if isinstance(part, ast.Attribute)}
        if named & KINDS:
            found.append(f"{path.relative_to(SOURCES)}:{node.lineno}")
    return found


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


def test_nobody_else_asks_of_which_kind_an_objective_is() -> None:
    asking = {path: questions(path) for path in files_under(".")}
    here = [place for path, places in asking.items() if path.is_relative_to(SOURCES / ROOMS[1]) for place in places]
    assert here, "the search finds what there is"
    rooms = tuple(SOURCES / room for room in ROOMS)
    others = [
        place
        for path, places in asking.items()
        if not any(path.is_relative_to(room) for room in rooms)
        for place in places
    ]
    assert others == []


def test_the_loop_imports_nothing_of_caffe_but_the_door() -> None:
    files = files_under(*LOOP)
    assert len(files) > len(LOOP)
    prefixes = ("sparknet.caffe", "sparknet.training.caffe_runs", "sparknet.training.objectives.caffe_objective")
    guilty = {
        str(path.relative_to(SOURCES)): names
        for path in files
        if (names := sorted(name for name in imported(path) - {DOOR} if name.startswith(prefixes)))
    }
    assert guilty == {}
