"""The labels of a run held against what its net takes: where the first rows tell, before Spark starts."""

from sparknet.data.shards.prepared import PreparedData
from sparknet.training.objectives.label_rules import check_extremes
from sparknet.training.objectives.objective import Objective

__all__ = ["check_held_out", "check_prepared"]


def check_prepared(objective: Objective, data: PreparedData) -> None:
    """Hold all prepared rows of a run against what its net takes.

    Raises:
        DataError: as `check_extremes`.
    """
    check_extremes(objective.label_rules, {name: one.train for name, (one, _) in data.stored.items()})
    check_held_out(objective, data)
    for name, test in data.tests.items():
        rows = {
            own: one.train if test.split == "train" else one.validation
            for own, (one, _) in test.data.stored.items()
        }
        check_extremes(objective.judges.get(name, objective).test_label_rules, rows)


def check_held_out(objective: Objective, data: PreparedData) -> None:
    """Hold the rows that are held out, which are only measured, against what the net takes in a test.

    Raises:
        DataError: as `check_extremes`.
    """
    check_extremes(objective.test_label_rules, {name: one.validation for name, (one, _) in data.stored.items()})
