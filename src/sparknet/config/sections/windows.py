"""Windows in images, as R-CNN trains on them: which are taken, and how they become images of one size."""

from dataclasses import dataclass
from typing import Literal

from sparknet.config.rules import all_finite, at_least, require

__all__ = ["Windows"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Windows:
    """Source windows: which windows are rows, and how they are cut out."""

    size: int
    """Side of the square that every window is brought to."""
    foreground_threshold: float = 0.5
    """Windows that overlap an object at least by this are foreground, with the label of the list."""
    background_threshold: float = 0.5
    """Other windows that overlap less than this are background, with label 0; those between are left out."""
    foreground_fraction: float = 0.25
    """Share of foreground among the rows. All foreground is taken once, and as much background as goes with it:
    drawn, or where there is too little of it, several times."""
    context_pad: int = 0
    """Pixels of what lies around the window, on each side of the finished square."""
    crop_mode: Literal["warp", "square"] = "warp"
    """Stretch the window, or take the smallest square around it."""
    fill: tuple[int, ...] = ()
    """What stands where a window reaches out of its image: a number for each channel, 0 to 255. Not given: 0, and
    of a net's WindowData layer its mean, in whole numbers, so that it comes near to 0."""

    def __post_init__(self) -> None:
        all_finite("data.windows", self)
        at_least("data.windows.size", self.size, 1)
        at_least("data.windows.context_pad", self.context_pad, 0)
        require(
            2 * self.context_pad < self.size,
            "data.windows.context_pad",
            self.context_pad,
            f"twice of it must be below data.windows.size, {self.size}: make it smaller",
        )
        require(
            0 <= self.foreground_fraction <= 1,
            "data.windows.foreground_fraction",
            self.foreground_fraction,
            "it is a share: from 0 to 1",
        )
        require(
            len(self.fill) in (0, 3) and all(0 <= value <= 255 for value in self.fill),
            "data.windows.fill",
            list(self.fill),
            "give three numbers from 0 to 255, one for each channel, or none",
        )
