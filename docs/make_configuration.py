"""Write docs/configuration.md from the schema, so that the two cannot drift apart (a test holds them together).

python docs/make_configuration.py
"""

import ast
import dataclasses
import inspect
import typing
from itertools import pairwise
from pathlib import Path

from sparknet.config import RunConfig
from sparknet.data.sources.registry import FORMATS

HEAD = """# Configuration

A run is described by one TOML file with a table per section below. Any key can be overridden on the command line:

```
sparknet train configs/digits.toml --set sync.local_steps=50 --set solver.policy=fixed
```

Values are TOML; bare words count as text; an empty value (`--set run.rounds=`) returns a key to its default.
Unknown keys and values that break a rule are refused with the key, the value, the rule and what to do. The run
directory holds the configuration as resolved, `config.toml`, which is a valid file itself.

This page is generated from `src/sparknet/config/sections/`: `python docs/make_configuration.py`.
"""


def page() -> str:
    """Return the whole page as Markdown."""
    sections = typing.get_type_hints(RunConfig)
    texts = [HEAD]
    for name, section in sections.items():
        texts.append(f"\n## `[{name}]`\n\n{inspect.getdoc(section)}\n\n{_table(section)}")
        texts += [
            f"\n### `{title}`\n\n{inspect.getdoc(inner)}\n\n{_table(inner)}"
            for title, inner in _inner_tables(name, section)
        ]
        if name == "data":
            texts.append(f"\n{_formats()}")
    return "".join(texts)


def _inner_tables(name: str, section: type) -> list[tuple[str, type]]:
    """The tables within a section, with their headings in TOML."""
    found: list[tuple[str, type]] = []
    for key, hint in typing.get_type_hints(section).items():
        origin, arguments = typing.get_origin(hint), typing.get_args(hint)
        members = [*arguments, *(inner for argument in arguments for inner in typing.get_args(argument))]
        for member in filter(dataclasses.is_dataclass, members):
            heading = {dict: f"[{name}.{key}.NAME]", tuple: f"[[{name}.{key}]]"}.get(origin, f"[{name}.{key}]")
            found.append((heading, member))
    return found


def _table(section: type) -> str:
    notes = _field_docstrings(section)
    rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for field in dataclasses.fields(section):
        kind = _kind(typing.get_type_hints(section)[field.name])
        rows.append(f"| `{field.name}` | {kind} | {_default(field)} | {notes[field.name]} |")
    return "\n".join(rows) + "\n"


def _formats() -> str:
    """What `data.source` may be, from the registry."""
    rows = ["| `source` | rows | |", "|---|---|---|"]
    for name, form in FORMATS.items():
        notes = [
            "" if form.has_path else "needs no `path`",
            "takes `labels`" if form.has_label_file else "",
            "takes `header`" if form.has_header else "",
            "needs `windows`" if form.has_windows else "",
            "a directory may hold test rows too" if form.holds_tests else "",
            "damaged rows are counted and left out" if form.names_rows else "",
            "read by Spark" if form.reader is None else "",
        ]
        rows.append(f"| `{name}` | {form.what} | {'; '.join(filter(None, notes))} |")
    return "\n".join(rows) + "\n"


def _field_docstrings(section: type) -> dict[str, str]:
    """The string that follows each field in the class body."""
    tree = ast.parse(inspect.getsource(inspect.getmodule(section)))
    body = next(node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == section.__name__)
    notes: dict[str, str] = {}
    for node, following in pairwise(body):
        if isinstance(node, ast.AnnAssign) and isinstance(following, ast.Expr):
            text = ast.literal_eval(following.value)
            notes[ast.unparse(node.target)] = " ".join(text.split()).replace("|", "\\|")
    return notes


def _kind(hint: typing.Any) -> str:
    names = {int: "whole number", float: "number", str: "text", bool: "true or false"}
    if hint in names:
        return names[hint]
    if dataclasses.is_dataclass(hint):
        return "table"
    if hint is typing.Any:
        return "value"
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return ", ".join(f'`"{choice}"`' for choice in arguments)
    if origin is tuple:
        return f"list of {_kind(arguments[0])}s"
    if origin is dict:
        return f"table of {_kind(arguments[1])}s"
    return " or ".join(_kind(member) for member in arguments if member is not type(None))


def _default(field: "dataclasses.Field[object]") -> str:
    if field.default is not dataclasses.MISSING:
        shown = {None: "not given", "": "not given", (): "`[]`", True: "`true`", False: "`false`"}
        if field.default is None or isinstance(field.default, str | bool | tuple):
            return shown.get(field.default, f'`"{field.default}"`')  # type: ignore[arg-type]
        return f"`{field.default!r}`"
    return "`{}`" if field.default_factory is not dataclasses.MISSING else "required"


if __name__ == "__main__":
    Path(__file__).with_name("configuration.md").write_text(page(), encoding="utf-8")
