"""Nets that write down, in files of a directory, where they were built and what they were given."""

import os
from pathlib import Path

import torch
from torch import nn


class Watched(nn.Module):
    """Scores of flattened rows, by a linear layer and one before it."""

    def __init__(self, *, directory: str, width: int, classes: int = 3, hidden: int = 4) -> None:
        super().__init__()
        self.first = nn.Linear(width, hidden)
        self.act = nn.ReLU()
        self.last = nn.Linear(hidden, classes)
        self._directory = Path(directory)
        self._note("built", os.getpid())

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        self._note("given", len(rows))
        return self.last(self.act(self.first(rows.flatten(1).float())))

    def _note(self, what: str, value: int) -> None:
        # Appended by whatever process: a line is one write.
        with (self._directory / what).open("a") as file:
            file.write(f"{value}\n")


def noted(directory: Path, what: str) -> list[int]:
    """What was written down."""
    path = directory / what
    return [int(line) for line in path.read_text().splitlines()] if path.exists() else []


class Sum(nn.Module):
    """A number for each row: of one input, or of two."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(10.0))

    def forward(self, first: torch.Tensor, second: torch.Tensor | None = None) -> torch.Tensor:
        found = first.flatten(1).float().sum(1)
        return found if second is None else found + self.factor * second.flatten(1).float().sum(1)


class Doubled(nn.Module):
    """Two numbers for each of a row's."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(2.0))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return rows.float() * self.factor


def both(outputs: torch.Tensor, targets: dict[str, torch.Tensor]) -> torch.Tensor:
    """A loss over two targets."""
    return outputs[:, 0].sub(targets["y"]).square().mean() + outputs[:, 1].sub(targets["z"]).square().mean()
