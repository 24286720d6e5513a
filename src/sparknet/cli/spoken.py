"""Errors in the words of the command line: a setting that an option stood for is called as that option."""

import argparse
import re

__all__ = ["spoken"]

_TYPED = {
    "data": ("--data", "data.path", "data.source"),
    "source": ("SOURCE", "data.path", "data.source"),
    "weights": ("--weights", "net.weights"),
    "net": ("--net", "net.prototxt"),
    "snapshot": ("--snapshot", "solver.snapshot"),
    "workers": ("--workers", "run.workers"),
    "master": ("--master", "cluster.master"),
    "shape": ("--shape", "input_shapes"),
}
"""By argument of a command what is typed for it, and the settings that it stands for."""
_FOR_CODE = re.compile(r"input_shapes=\{.*?\}, or on the command line ")
"""What is said to those who call the library."""


def spoken(message: str, arguments: argparse.Namespace) -> str:
    """An error's message as whoever typed the command takes it.

    Args:
        message: it names settings (`data.path`), as configuration files have them.
        arguments: of the command.
    """
    message = _FOR_CODE.sub("", message)
    typed = {setting.partition("=")[0] for setting in getattr(arguments, "set", [])}
    for argument, (word, *keys) in _TYPED.items():
        if not getattr(arguments, argument, None):
            continue
        # Other rows that a run is tested on are its validation rows of this once.
        more = ("data.validation_path",) if argument == "data" and getattr(arguments, "run_dir", None) else ()
        for key in {*keys, *(more if arguments.module.endswith((".test", ".predict")) else ())} - typed:
            # Not within paths, nor in settings that are given as examples.
            message = re.sub(rf"(?<![\w./-]){re.escape(key)}(?![\w=]|\.\w)", word, message)
    return message
