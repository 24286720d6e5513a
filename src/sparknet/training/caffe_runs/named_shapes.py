"""Shapes of a net's inputs where its file does not tell them, from the rows that its data layers name."""

from collections.abc import Mapping
from pathlib import Path

from sparknet.caffe.description.spec import NetSpec, PhaseName
from sparknet.caffe.layers.layer import Shape
from sparknet.config import Data, decode
from sparknet.data.sources.opening import open_sources
from sparknet.errors import ConfigError, DataError
from sparknet.training.caffe_runs.channels import with_channels
from sparknet.training.caffe_runs.data_layers import NetSources
from sparknet.training.objectives.input_binding import batch_in_file, inputs_of, intake_of

__all__ = ["named_shapes"]


def named_shapes(
    spec: NetSpec, phase: PhaseName, directory: Path, *, given: Mapping[str, Shape] | None = None
) -> dict[str, Shape]:
    """By blob the shape, with the batch axis, of each input whose shape the file does not tell.

    Args:
        spec: the net.
        phase: one of its states.
        directory: where its sources are looked for beside the current directory.
        given: shapes that are known otherwise, and win; the others then have as many rows.

    Returns:
        Those that are given alone where all are told, or the sources are not here: whoever builds the net says what
        is missing.

    Raises:
        NetError: a layer that stands for inputs contradicts itself.
    """
    state, given = spec.select(phase), dict(given or {})
    if all(blob.shape is not None for blob in inputs_of(state)):
        return given
    try:
        table = NetSources(spec=spec, directory=directory).table(testing=phase == "TEST", held_out=True)
        # Of which rows is held out nothing depends here.
        held = {} if "validation_path" in table else {"validation_fraction": 0.5}
        data = decode(Data, {**table, **held, "class_values": "stored", "channel_order": "bgr"})
        data = with_channels(data, spec)
        rows = open_sources(data).schema(data)
    except (ConfigError, DataError):
        # A net of somebody else's names files of somebody else's.
        return given
    if rows is None:
        return given
    batch = next((shape[0] for shape in given.values()), batch_in_file(state) or 1)
    return intake_of(state, rows, batch=batch, phase=phase).shapes | given
