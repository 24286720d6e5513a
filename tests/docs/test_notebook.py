"""examples/notebook.ipynb, from the first cell to the last, in a kernel of its own."""

import re

import nbformat
import pytest
from nbclient import NotebookClient

from places import REPOSITORY

pytestmark = pytest.mark.spark


def test_every_cell_runs(tmp_path, monkeypatch):
    # As a user has it who has installed the package: nothing of the tests is on the path.
    monkeypatch.delenv("PYTHONPATH", raising=False)
    notebook = nbformat.read(REPOSITORY / "examples" / "notebook.ipynb", as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells), "it is kept without what it has printed"
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=240, kernel_name="python3", resources=resources).execute()
    shown = "\n".join(str(cell.get("outputs", "")) for cell in notebook.cells)
    accuracy = re.search(r"(\d+\.\d+)% of \d+ digits", shown)
    assert accuracy
    assert float(accuracy[1]) > 90
    # Progress is drawn in the cell of the fit, not printed line by line.
    (fit,) = (cell for cell in notebook.cells if "estimator.fit" in cell.source)
    assert any("text/html" in output.get("data", {}) for output in fit.outputs)
    assert not [output for output in fit.outputs if output.output_type == "stream" and output.name == "stdout"]
