"""Where things lie."""

from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
REFERENCE = REPOSITORY / "tests" / "caffe" / "reference"
"""What the real Caffe computed."""
SUPPORT = REPOSITORY / "tests" / "support"
"""Modules of the tests, Python layers among them."""
