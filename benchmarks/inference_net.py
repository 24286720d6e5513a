"""The net of `inference.py`'s table of numbers, which Python workers import too."""

from torch import nn

__all__ = ["dense"]


def dense() -> nn.Module:
    """Two layers over 100 numbers."""
    return nn.Sequential(nn.Linear(100, 64), nn.ReLU(), nn.Linear(64, 10))
