"""Two optimisers over different parameters that look like one."""

from collections.abc import Callable
from typing import Any

import torch

__all__ = ["PairedOptimizer"]


class PairedOptimizer(torch.optim.Optimizer):
    """Steps two optimisers; groups and state are those of both, the first one's first.

    Args:
        first: of some parameters.
        second: of others.
    """

    def __init__(self, first: torch.optim.Optimizer, second: torch.optim.Optimizer) -> None:
        self._pair = (first, second)
        super().__init__([*first.param_groups, *second.param_groups], {})
        self._share()

    def step(self, closure: Callable[[], Any] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One step of both.

        Raises:
            ValueError: a closure is given, which two cannot share.
        """
        if closure is not None:
            raise ValueError("two optimisers share no closure; call step() without")
        for one in self._pair:
            one.step()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` gave."""
        super().load_state_dict(state_dict)
        self._share()

    def _share(self) -> None:
        """Let both work on this one's groups and state: loading makes new objects of them."""
        cut = len(self._pair[0].param_groups)
        self._pair[0].param_groups = self.param_groups[:cut]
        self._pair[1].param_groups = self.param_groups[cut:]
        for one in self._pair:
            one.state = self.state
