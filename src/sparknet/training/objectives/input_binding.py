"""How rows reach a Caffe net: which input is given which column, in which shape."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sparknet.caffe.description.spec import NetSpec, PhaseName
from sparknet.caffe.layers import INPUT_LAYERS, InputBlob, Shape, input_blobs
from sparknet.caffe.schema import LayerParameter
from sparknet.config import Data, DataColumn
from sparknet.config.rules import told
from sparknet.data.loading.transform import Normalise
from sparknet.data.rows.columns import Column
from sparknet.data.rows.row_schema import RowSchema
from sparknet.data.sources.passes import PASS
from sparknet.errors import ConfigError, DataError, NetError
from sparknet.training.objectives.objective import InputTransform

__all__ = [
    "Bound",
    "Intake",
    "batch_in_file",
    "check_augmentation",
    "input_rows",
    "inputs_of",
    "intake_of",
    "makes_rows",
    "seen_rows",
    "transform_of",
]

_DATABASES = ("Data", "ImageData", "WindowData")
"""Kinds whose rows have whatever shape the data have."""
_TRANSFORMING = (*_DATABASES, "MemoryData")
"""Kinds that say in their transform_param what is done to their images."""
_BATCHES = {
    "Data": "data_param",
    "ImageData": "image_data_param",
    "WindowData": "window_data_param",
    "MemoryData": "memory_data_param",
    "HDF5Data": "hdf5_data_param",
}


def seen_rows(rows: RowSchema, data: Data) -> RowSchema:
    """What a net that knows nothing of cutting is fed: `rows` after `data.crop`, column by column.

    Raises:
        ConfigError: no such square can be cut out of the rows, or they cannot be mirrored.
    """
    for column in rows.inputs:
        rule, short = data.column(column.name), column.name not in data.columns
        prefix = "data" if short else f"data.columns.{column.name}"
        rows = rows.with_input(_seen(column, rule, prefix))
    return rows


def _seen(column: Column, rule: DataColumn, prefix: str) -> Column:
    shape = column.shape
    for key, value in ((f"{prefix}.crop", rule.crop), (f"{prefix}.mirror", rule.mirror)):
        if value and len(shape) != 3:
            raise ConfigError(
                f"{key} is {value!r} and the rows have shape {shape}; it takes (channels, height, width): set "
                f"{prefix}.shape, or leave {key} out"
            )
    # Mirroring changes no shape: only the cut is left.
    if not rule.crop:
        return column
    if min(shape[1:]) < rule.crop:
        raise ConfigError(
            f"{prefix}.crop is {rule.crop} and the images are {shape[1]}x{shape[2]}; they must be at least as "
            f"large: lower {prefix}.crop, or give larger images with {prefix}.resize"
        )
    return replace(column, shape=(shape[0], rule.crop, rule.crop))


def transform_of(blob: InputBlob, phase: PhaseName) -> InputTransform | None:
    """What a layer's transform_param does to its images; None for a layer of a kind that has none."""
    if blob.kind not in _TRANSFORMING:
        return None
    return InputTransform(
        where=f"layer {blob.layer!r} ({blob.kind})",
        normalise=_plain_normalise(blob, phase),
        mean_file=blob.transform.mean_file,
        mean_values=blob.transform.mean_values,
        # window_data_layer.cpp: the mean of whole images, of which windows of another size are made.
        takes_middle=blob.kind == "WindowData",
    )


def check_augmentation(said: InputTransform, rule: DataColumn, *, key: Callable[[str], str]) -> None:
    """Refuse a crop and a mirror beside a data layer, which says both in its transform_param.

    Args:
        said: what the layer says.
        rule: what the configuration says of its column.
        key: the whole key of a setting, for messages.

    Raises:
        ConfigError: naming both.
    """
    normalise = said.normalise
    for name, value, there in (
        ("crop", rule.crop, f"crop_size {normalise.crop}"),
        ("mirror", rule.mirror, f"mirror: {str(normalise.mirror).lower()}"),
    ):
        if value:
            raise ConfigError(
                f"{key(name)} is {told(value)} and {said.where} has {there} in its transform_param; only one can "
                f"say it, and for such a net that is the layer: set it there and leave {key(name)} out"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Bound:
    """An input of a net and the column that it is given."""

    blob: InputBlob
    column: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Intake:
    """What one state of a net is given for a batch of rows."""

    bound: tuple[Bound, ...]
    """Every input of the net, with its column."""
    shapes: dict[str, Shape]
    """Of each input, with the batch axis."""
    inputs: tuple[str, ...]
    """The columns that are inputs, not targets: all that a prediction needs."""
    unchanged: frozenset[str] = frozenset()
    """The columns of which every number reaches the net as it is stored."""

    def blobs(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The net's inputs, of columns [batch, ...] by name; targets that are not there are zeros."""
        rows = len(next(batch[name] for name in self.inputs))
        given: dict[str, Tensor] = {}
        for one in self.bound:
            shape = (rows, *self.shapes[one.blob.name][1:])
            if one.column not in batch:
                # A pass runs the whole net, loss and all: any target will do.
                like = batch[self.inputs[0]]
                given[one.blob.name] = torch.zeros(shape, device=like.device)
                continue
            # Caffe's labels may be [batch], [batch, 1] or [batch, 1, 1, 1]; each net says which.
            given[one.blob.name] = batch[one.column].reshape(shape)
        return given


def inputs_of(spec: NetSpec) -> list[InputBlob]:
    """The inputs of one state of a net.

    Raises:
        NetError: a layer that stands for inputs contradicts itself.
    """
    blobs: list[InputBlob] = []
    for index, layer in enumerate(spec.parameters.layer):
        if layer.type in INPUT_LAYERS:
            try:
                blobs += input_blobs(layer)
            except NetError as error:
                raise NetError(f"{spec.place(index)}: {error}") from error
    return blobs


def batch_in_file(spec: NetSpec) -> int | None:
    """Rows of a batch as the input layers of one state give it; None where they do not."""
    for layer in spec.parameters.layer:
        if layer.type in _BATCHES:
            return _batch_of(layer)
        if layer.type == "Input" and layer.input_param.shape:
            return int(layer.input_param.shape[0].dim[0])
    # Whatever the layer makes in a pass, the pass is what is counted.
    return 1 if makes_rows(spec) else None


def makes_rows(spec: NetSpec) -> bool:
    """Whether one state of a net has layers that make its rows: Python layers without bottoms, or DummyData."""
    dummies = any(layer.type == "DummyData" for layer in spec.parameters.layer)
    return dummies or any(not layer.bottom for _, layer in spec.python_layers())


def input_rows(spec: NetSpec) -> Shape | None:
    """Shape of one row of the image input where the file gives it, before anything is cut out; else None."""
    # Where something is cut out, the file's shape is that of the cut and not that of a row.
    blobs = [blob for blob in inputs_of(spec) if blob.place == 0 and blob.name != "label"]
    if len(blobs) != 1 or blobs[0].shape is None or blobs[0].transform.crop_size:
        return None
    return blobs[0].shape[1:]


def intake_of(spec: NetSpec, rows: RowSchema, *, batch: int, phase: PhaseName, data: Data | None = None) -> Intake:
    """Decide which input of one state of a net is given which column.

    An input takes the column of its name. Of what is left, the second top of a data layer, or an input called
    `label`, takes the first target; and the only input that is then left takes the only input column.

    Args:
        spec: one state of the net.
        rows: what the net is fed, `seen_rows`.
        batch: rows of a batch.
        phase: which state, for messages.
        data: what was done to the rows; None: nothing.

    Raises:
        NetError: the state has no input, one is left over, a column is, or the rows do not fit one.
        ConfigError: `data` says what a data layer says itself.
    """
    blobs = inputs_of(spec)
    own_rows, given = makes_rows(spec), ", ".join(column.name for column in rows.columns)
    if own_rows and not blobs and given == PASS:
        return Intake(bound=(), shapes={}, inputs=(PASS,))
    if given == PASS:
        raise NetError(
            f"{spec.source}: phase {phase} takes {', '.join(blob.name for blob in blobs) or 'nothing'} and has no "
            "Python layer without bottoms and no DummyData, so the net does not make its own rows: name some "
            "(data.source, --data)"
        )
    if own_rows and not blobs:
        raise NetError(
            f"{spec.source}: phase {phase} takes no rows, since its own layers make them, and the data have the "
            f"columns {given}: leave --data out, or set data.source to 'net'"
        )
    if not blobs:
        why = " and every run is tested" if phase == "TEST" else ""
        raise NetError(
            f"{spec.source}: phase {phase} has no data layer{why}: add one with include {{ phase: {phase} }}"
        )
    if rows.weight:
        raise NetError(
            f"data.weight is {rows.weight!r}, and {spec.source} is a Caffe net, whose losses know no weights of "
            "rows: leave data.weight out"
        )
    bound = _bind(spec, blobs, rows, phase)
    columns = {column.name: column for column in rows.columns}
    inputs = tuple(column.name for column in rows.inputs)
    shapes: dict[str, Shape] = {}
    for one in bound:
        said = transform_of(one.blob, phase)
        if said is not None and data is not None and one.blob.place == 0:
            # Before the shapes: rows cut by both would not fit, and the message would blame the rows.
            prefix = f"data.columns.{one.column}" if one.column in data.columns else "data"
            check_augmentation(said, data.column(one.column), key=lambda name, prefix=prefix: f"{prefix}.{name}")
        column = columns[one.column]
        is_image = one.column in inputs or (one.blob.place == 0 and bool(column.shape))
        shape = _row_shape(spec, one.blob, column.shape) if is_image else _target_shape(spec, one.blob, column)
        shapes[one.blob.name] = (batch, *shape)
    unchanged = frozenset(
        one.column for one in bound if _is_unchanged(one.blob, columns[one.column], inputs, data, phase)
    )
    return Intake(bound=tuple(bound), shapes=shapes, inputs=inputs, unchanged=unchanged)


def _is_unchanged(
    blob: InputBlob, column: Column, inputs: tuple[str, ...], data: Data | None, phase: PhaseName
) -> bool:
    # Whole numbers are taken as they are, whatever is said: `preprocessing` refuses it.
    if column.dtype == "int64":
        return True
    # Of inputs even what is not said may take a mean off.
    if column.name in inputs:
        return False
    rule = DataColumn() if data is None else data.column(column.name)
    settled = (rule.scale, rule.crop, rule.mean in (None, "none"), rule.std in (None, "none"))
    if settled != (1, 0, True, True) or rule.mean_values or rule.mean_file or rule.std_values:
        return False
    said = transform_of(blob, phase) if blob.place == 0 else None
    if said is None:
        return True
    return said.normalise.scale == 1 and not (said.normalise.crop or said.mean_file or said.mean_values)


def _bind(spec: NetSpec, blobs: list[InputBlob], rows: RowSchema, phase: PhaseName) -> list[Bound]:
    names = [column.name for column in rows.columns]
    found = {blob.name: blob.name for blob in blobs if blob.name in names}
    # The surest sign first. Of a data layer's tops the place tells, whatever they are called; the tops of Input and
    # others have no meaning but their names.
    for fits in (lambda blob: blob.place == 1 and blob.kind in _TRANSFORMING, lambda blob: blob.name == "label"):
        free = [column.name for column in rows.targets if column.name not in found.values()]
        label = [blob for blob in blobs if blob.name not in found and fits(blob)]
        if free and label:
            found[label[0].name] = free[0]
    left = [blob for blob in blobs if blob.name not in found]
    free = [column.name for column in rows.inputs if column.name not in found.values()]
    # There must be only one of each: guessing between two would train on the wrong column.
    if len(left) == len(free) == 1:
        found[left[0].name] = free[0]
    elif left or free:
        named = ", ".join(f"{blob.name} ({blob.kind})" for blob in blobs)
        raise NetError(
            f"{spec.source}: phase {phase} has the inputs {named}; the data have the columns {', '.join(names)}, "
            f"and which is given to {', '.join(blob.name for blob in left) or 'none'} is not known: name the "
            "columns as the inputs (data.inputs, data.targets, data.beside)"
        )
    return [Bound(blob=blob, column=found[blob.name]) for blob in blobs]


def _plain_normalise(blob: InputBlob, phase: PhaseName) -> Normalise:
    """What a data layer does to an image but for the mean."""
    transform = blob.transform
    return Normalise(
        mean=None,
        scale=transform.scale,
        crop=transform.crop_size,
        cut="random" if phase == "TRAIN" else "centre",
        mirror=transform.mirror,
    )


def _batch_of(layer: LayerParameter) -> int | None:
    return int(getattr(layer, _BATCHES[layer.type]).batch_size) or None  # protobuf gives 0 for what is not set


def _row_shape(spec: NetSpec, blob: InputBlob, found: Shape) -> Shape:
    """Shape of one row as the net sees it, for a stored row of shape `found`."""
    where = f"{spec.source}: layer {blob.layer!r} ({blob.kind})"
    try:
        # Of either phase: where the square is cut does not change its shape.
        seen = _plain_normalise(blob, "TEST").row_shape(found)
    except DataError as error:
        raise NetError(f"{where}: {error}") from error
    # A database layer takes whatever shape its records have, as in Caffe; the others give theirs in the file.
    expected = blob.shape[1:] if blob.shape is not None and blob.kind not in _DATABASES else seen
    # A table's list of numbers, or a single one, has no shape of its own: they fill the blob in their order.
    if len(seen) < 2 and math.prod(seen) == math.prod(expected):
        return expected
    if seen != expected:
        raise NetError(
            f"{where}: expected rows of shape {expected}, got {seen}; give the data that the net is made for, or "
            "correct the shape in that layer"
        )
    return seen


def _target_shape(spec: NetSpec, blob: InputBlob, column: Column) -> Shape:
    """Shape of one row of a target as the net takes it."""
    if blob.shape is None:
        return column.shape
    rest = blob.shape[1:]
    # As many values as the file says, however they are arranged: one number may be [1, 1, 1] in Caffe.
    if math.prod(rest) != column.width:
        raise NetError(
            f"{spec.source}: layer {blob.layer!r} ({blob.kind}): expected labels of shape {rest} a row, got "
            f"{column.shape or 'one number'} in column {column.name}: give rows with such labels, or correct the "
            "shape in that layer"
        )
    return rest
