"""The labels of a run held against what its net takes: all of them once prepared, the first before Spark starts."""

from collections.abc import Sequence

import numpy as np

from sparknet.config import Data
from sparknet.data.shards.prepared import PreparedData
from sparknet.data.sources.first_labels import first_labels
from sparknet.data.sources.opening import OpenedSource, OpenedSources, data_of_parts
from sparknet.training.objectives.label_rules import LabelRule, check_extremes
from sparknet.training.objectives.objective import Objective

__all__ = ["check_first_labels", "check_held_out", "check_prepared", "check_tested_labels"]


def check_first_labels(objective: Objective, sources: OpenedSources, data: Data) -> None:
    """Hold the labels that can be seen without a job against what a run's net takes.

    Raises:
        DataError: as `check_extremes`; or a label cannot be read.
    """
    training, testing = objective.label_rules(), objective.label_rules(testing=True)
    if not data.validation_path and data.validation is None:
        # Any of these rows may be held out and only tested: then only that counts which both states refuse.
        training = [rule for rule in training if any(rule.is_like(other) for other in testing)]
    for part, names, opened in _parts(sources, data):
        _check_first(training, opened.train, part, names)
        if opened.validation is not None:
            _check_first(testing, opened.validation, part, names)


def check_tested_labels(objective: Objective, opened: OpenedSource | OpenedSources, data: Data) -> None:
    """The same of rows that are only tested.

    Raises:
        DataError: as `check_first_labels`.
    """
    testing = objective.label_rules(testing=True)
    if isinstance(opened, OpenedSource):
        _check_first(testing, opened, data, {name: name for name in data.column_names})
        return
    for part, names, one in _parts(opened, data):
        # Of rows that are drawn or marked only some are tested, and which is not known yet.
        if one.validation is not None:
            _check_first(testing, one.validation, part, names)


def check_prepared(objective: Objective, data: PreparedData) -> None:
    """Hold all prepared rows of a run against what its net takes.

    Raises:
        DataError: as `check_extremes`.
    """
    check_extremes(objective.label_rules(), {name: one.train for name, (one, _) in data.stored.items()})
    check_held_out(objective, data)
    for name, test in data.tests.items():
        stored = {own: column for own, (column, _) in test.data.stored.items()}
        found = {own: one.train if test.split == "train" else one.validation for own, one in stored.items()}
        check_extremes(objective.judges.get(name, objective).label_rules(testing=True), found)


def check_held_out(objective: Objective, data: PreparedData) -> None:
    """Hold the rows that are held out, which are only measured, against what the net takes in a test.

    Raises:
        DataError: as `check_extremes`.
    """
    found = {name: one.validation for name, (one, _) in data.stored.items()}
    check_extremes(objective.label_rules(testing=True), found)


def _parts(sources: OpenedSources, data: Data) -> list[tuple[Data, dict[str, str], OpenedSources]]:
    """What is read in step, each with its settings, and the names in the run of its columns."""
    if not sources.beside:
        return [(data, {name: name for name in data.column_names}, sources)]
    opened = (sources, *sources.beside.values())
    return [(part, names, one) for (part, names), one in zip(data_of_parts(data), opened, strict=True)]


def _check_first(rules: Sequence[LabelRule], opened: OpenedSource, data: Data, names: dict[str, str]) -> None:
    for own, name in names.items():
        of_column = [rule for rule in rules if rule.column == name]
        if not of_column:
            continue

        def is_wrong(values: np.ndarray, rules: Sequence[LabelRule] = of_column) -> np.ndarray:
            return np.logical_or.reduce([rule.is_broken(values) for rule in rules])

        check_extremes(of_column, {name: first_labels(opened, data, own, is_wrong)})
