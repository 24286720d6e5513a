"""A configuration's net and solver, with what their Caffe files come to: read once, then handed on."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sparknet.caffe.description.spec import NetSpec
from sparknet.caffe.description.upgrade import upgrade_solver
from sparknet.caffe.prototxt import parse_text
from sparknet.caffe.schema import SolverParameter
from sparknet.caffe.solver.settings import SolverSettings
from sparknet.config import Net, Objective, Solver
from sparknet.training.objectives.given_code import Code

__all__ = ["Recipe", "with_python_layers"]


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class Recipe:
    """What is trained, and how it is optimised."""

    net: Net
    """Which net."""
    spec: NetSpec | None = None
    """What `net.prototxt` describes; None for a net that has a name."""
    objective: Objective = field(default_factory=Objective)
    """What is minimised and measured; of a Caffe file that says both itself, nothing."""
    solver: Solver = field(default_factory=Solver)
    """How it is optimised."""
    code: Code = field(default_factory=dict[str, Callable[..., Any]])
    """What a program gave for names of the configuration."""
    settings: SolverSettings | None = None
    """What `solver.prototxt` says; None where torch's SGD takes the values of `solver`."""

    @classmethod
    def read(
        cls,
        net: Net,
        solver: Solver | None = None,
        *,
        objective: Objective | None = None,
        code: Code | None = None,
    ) -> "Recipe":
        """Read the texts that a self-contained configuration has of Caffe's files.

        Raises:
            NetError: a text is no net, or no solver.
            ConfigError: a value of the solver breaks a rule.
        """
        solver = solver or Solver()
        settings = None
        if solver.prototxt:
            # A self-contained configuration holds the text as it was written, legacy fields too.
            message = upgrade_solver(parse_text(solver.prototxt, SolverParameter).message)
            # The run's net is told elsewhere, so that those which the solver names do not matter.
            settings = SolverSettings.from_message(message, own_nets=False)
        spec = NetSpec.from_text(net.prototxt) if net.prototxt else None
        return cls(
            net=net,
            spec=spec and with_python_layers(spec, net),
            objective=objective or Objective(),
            code=code or {},
            solver=solver,
            settings=settings,
        )

    @property
    def batches_per_step(self) -> int:
        """Batches of one step: `solver.accumulate`, Caffe's iter_size."""
        return self.settings.rule.iter_size if self.settings else self.solver.accumulate


def with_python_layers(spec: NetSpec, net: Net) -> NetSpec:
    """A net's description, with leave to run the code of its layers where the configuration gives it."""
    return spec.allowing_python_layers(*net.python_path) if net.allow_python_layers else spec
