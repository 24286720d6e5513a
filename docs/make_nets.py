"""Write the tables of docs/nets.md from the code, so that the two cannot drift apart (a test holds them together).

python docs/make_nets.py
"""

import inspect
import re
from collections.abc import Iterable
from pathlib import Path

import torch

from sparknet.caffe import CaffeNet, dsl, zoo
from sparknet.caffe.layers import LAYERS
from sparknet.caffe.prototxt.fork_layers import FOREIGN_LAYERS
from sparknet.caffe.prototxt.forks import HARMLESS, REFUSED

PAGE = Path(__file__).with_name("nets.md")


def page() -> str:
    """Return the whole page, with its tables as the code has them."""
    text = PAGE.read_text(encoding="utf-8")
    for name, table in (
        ("zoo", zoo_table()),
        ("layers", layer_table()),
        ("passed over", harmless_table()),
        ("refused", refused_table()),
        ("foreign", foreign_table()),
    ):
        begin, end = f"<!-- table: {name} -->\n", "<!-- end -->"
        pattern = re.compile(re.escape(begin) + ".*?" + end, flags=re.DOTALL)
        text, found = pattern.subn((begin + table + end).replace("\\", r"\\"), text)
        assert found == 1, f"{PAGE} has {found} places for the table {name!r}"
    return text


def zoo_table() -> str:
    """What each net of the zoo is and costs."""
    rows: list[tuple[str, ...]] = []
    for name in zoo.__all__:
        function = getattr(zoo, name)
        what = " ".join((inspect.getdoc(function) or "").split("\n\n")[0].split()).partition("; ")[0]
        if name == "digits_cnn":
            parameters = sum(value.numel() for value in function(input_shape=(1, 8, 8), classes=10).parameters())
            rows.append((f"`{name}`", what.rstrip("."), "1x8x8", f"{parameters:,}", "", ""))
            continue
        with torch.device("meta"):  # without memory for the weights
            net = CaffeNet(function(), "TRAIN")
        batch, *row = net.inputs["data"].shape or ()
        multiply_adds = sum(step.layer.multiply_adds(step.bottom_shapes, step.top_shapes) for step in net.steps)
        parameters = sum(value.numel() for value in net.parameters())
        millions = multiply_adds / batch / 1e6
        cost = f"{millions:,.0f}" if millions >= 100 else f"{millions:.3g}"
        rows.append((f"`{name}`", what, "x".join(map(str, row)), f"{parameters:,}", cost, str(batch)))
    return _table(("name", "what", "input", "parameters", "multiply-adds of a row, million", "batch"), rows)


def layer_table() -> str:
    """Every layer type that is built."""
    rows: list[tuple[str, ...]] = []
    for kind in sorted(LAYERS, key=str.lower):
        function = next((name for name in (f"{kind}Layer", kind) if name in dsl.__all__), "")
        what = (LAYERS[kind].__doc__ or "").strip().splitlines()[0]
        rows.append((f"`{kind}`", f"`{function}`" if function else f'`Layer("{kind}", ...)`', what))
    return _table(("type", "in Python", "what it does"), rows)


def harmless_table() -> str:
    """Fields of forks that are passed over, by message."""
    rows = [
        (f"`{message}`", f"`{name}`", why) for message, names in HARMLESS.items() for name, why in names.items()
    ]
    return _table(("message", "field", "what it decides"), sorted(rows))


def refused_table() -> str:
    """Fields of forks that are errors, by message."""
    rows = [
        (f"`{message}`", f"`{name}`", refusal.effect, f"`{refusal.neutral[0]}`" if refusal.neutral else "")
        for message, names in REFUSED.items()
        for name, refusal in names.items()
    ]
    return _table(("message", "field", "what it does, and what to write instead", "without effect"), sorted(rows))


def foreign_table() -> str:
    """Layer types that are errors, whose they are and what to write instead."""
    rows = [(f"`{kind}`", known.whose, known.instead) for kind, known in FOREIGN_LAYERS.items()]
    return _table(("type", "whose", "what to write instead"), sorted(rows, key=lambda row: row[0].lower()))


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
