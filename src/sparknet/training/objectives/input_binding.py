"""How rows reach a Caffe net: which input is given which column, in which shape."""

from dataclasses import dataclass, replace

from torch import Tensor

from sparknet.caffe.description.spec import NetSpec, PhaseName
from sparknet.caffe.layers import INPUT_LAYERS, InputBlob, Shape, input_blobs
from sparknet.caffe.schema import LayerParameter
from sparknet.config import Data
from sparknet.data.loading.transform import Normalise
from sparknet.data.rows.row_schema import RowSchema
from sparknet.errors import ConfigError, DataError, NetError
from sparknet.training.objectives.objective import InputTransform

__all__ = [
    "Intake",
    "batch_in_file",
    "check_augmentation",
    "input_rows",
    "inputs_of",
    "intake_of",
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
    """What a net that knows nothing of cutting is fed: `rows` after `data.crop`.

    Raises:
        ConfigError: no such square can be cut out of the rows, or they cannot be mirrored.
    """
    shape = rows.input.shape
    for key, value in (("data.crop", data.crop), ("data.mirror", data.mirror)):
        if value and len(shape) != 3:
            raise ConfigError(
                f"{key} is {value!r} and the rows have shape {shape}; it takes (channels, height, width): set "
                f"data.shape, or leave {key} out"
            )
    # Mirroring changes no shape: only the cut is left.
    if not data.crop:
        return rows
    if min(shape[1:]) < data.crop:
        raise ConfigError(
            f"data.crop is {data.crop} and the images are {shape[1]}x{shape[2]}; they must be at least as large: "
            "lower data.crop, or give larger images with data.resize"
        )
    cut = replace(rows.input, shape=(shape[0], data.crop, data.crop))
    return replace(rows, input=cut)


def transform_of(blob: InputBlob, phase: PhaseName) -> InputTransform | None:
    """What a layer's transform_param does to its images; None for a layer of a kind that has none."""
    if blob.kind not in _TRANSFORMING:
        return None
    return InputTransform(
        where=f"layer {blob.layer!r} ({blob.kind})",
        normalise=_plain_normalise(blob, phase),
        mean_file=blob.transform.mean_file,
        mean_values=blob.transform.mean_values,
    )


def check_augmentation(said: InputTransform, data: Data) -> None:
    """Refuse `data.crop` and `data.mirror` beside a data layer, which says both in its transform_param.

    Raises:
        ConfigError: naming both.
    """
    normalise = said.normalise
    for key, value, there in (
        ("data.crop", data.crop, f"crop_size {normalise.crop}"),
        ("data.mirror", data.mirror, f"mirror: {str(normalise.mirror).lower()}"),
    ):
        if value:
            raise ConfigError(
                f"{key} is {value!r} and {said.where} has {there} in its transform_param; only one can say it, and "
                f"for such a net that is the layer: set it there and leave {key} out"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Intake:
    """What one state of a net is given for a batch of rows."""

    image: InputBlob
    """The input that takes the image column."""
    label: InputBlob | None
    """The input that takes the label column, if the net has one."""
    shapes: dict[str, Shape]
    """Of each input, with the batch axis."""

    def inputs(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The net's inputs, for float32 [batch, *shape] and int64 [batch]."""
        given = {self.image.name: images}
        if self.label is not None:
            # Caffe's labels may be [batch], [batch, 1] or [batch, 1, 1, 1]; each net says which.
            given[self.label.name] = labels.reshape(-1, *self.shapes[self.label.name][1:])
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
    return None


def input_rows(spec: NetSpec) -> Shape | None:
    """Shape of one row of the image input where the file gives it, before anything is cut out; else None."""
    # Where something is cut out, the file's shape is that of the cut and not that of a row.
    blobs = [blob for blob in inputs_of(spec) if blob.place == 0 and blob.name != "label"]
    if len(blobs) != 1 or blobs[0].shape is None or blobs[0].transform.crop_size:
        return None
    return blobs[0].shape[1:]


def intake_of(spec: NetSpec, rows: RowSchema, *, batch: int, phase: PhaseName, data: Data | None = None) -> Intake:
    """Decide which input of one state of a net is given which column.

    The first top of a data layer is the image and its second the label. Of other inputs the one that is named as a
    column takes it; `label` is the label too, and what is then left is the image.

    Args:
        spec: one state of the net.
        rows: what the net is fed, `seen_rows`.
        batch: rows of a batch.
        phase: which state, for messages.
        data: what was done to the rows; None: nothing.

    Raises:
        NetError: the state has no input, one is left over, or the rows do not fit one.
        ConfigError: `data` says what a data layer says itself.
    """
    blobs = inputs_of(spec)
    if not blobs:
        why = " and every run is tested" if phase == "TEST" else ""
        raise NetError(
            f"{spec.source}: phase {phase} has no data layer{why}: add one with include {{ phase: {phase} }}"
        )
    label = _choose_label(blobs, rows)
    left = [blob for blob in blobs if blob is not label]
    named = [blob for blob in left if blob.name == rows.input.name]
    # A name decides, else there must be only one: guessing between two would train on the wrong column.
    image = named[0] if named else left[0] if len(left) == 1 else None
    if image is None or len(left) > 1:
        names = ", ".join(f"{blob.name} ({blob.kind})" for blob in blobs)
        raise NetError(
            f"{spec.source}: phase {phase} has the inputs {names}; the data have the columns {rows.input.name!r} "
            f"and {rows.label.name!r}, so one image and at most one label can be given: name the inputs as the "
            "columns"
        )
    said = transform_of(image, phase)
    if said is not None and data is not None:
        # Before the shapes: rows cut by both would not fit, and the message would blame the rows.
        check_augmentation(said, data)
    shapes: dict[str, Shape] = {image.name: (batch, *_row_shape(spec, image, rows.input.shape))}
    if label is not None:
        shapes[label.name] = _label_shape(spec, label, batch)
    return Intake(image=image, label=label, shapes=shapes)


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


def _choose_label(blobs: list[InputBlob], rows: RowSchema) -> InputBlob | None:
    # The surest sign first. Of a data layer's tops the place tells, whatever they are called; the tops of Input and
    # others have no meaning but their names.
    for fits in (
        lambda blob: blob.name == rows.label.name,
        lambda blob: blob.place == 1 and blob.kind in _TRANSFORMING,
        lambda blob: blob.name == "label",
    ):
        found = [blob for blob in blobs if fits(blob)]
        if found:
            return found[0]
    return None


def _row_shape(spec: NetSpec, blob: InputBlob, found: Shape) -> Shape:
    """Shape of one row as the net sees it, for a stored row of shape `found`."""
    where = f"{spec.source}: layer {blob.layer!r} ({blob.kind})"
    transform = blob.transform
    if (transform.force_color and found[0] != 3) or (transform.force_gray and found[0] != 1):
        wanted = "force_color" if transform.force_color else "force_gray"
        raise NetError(
            f"{where}: {wanted} is set and the images have {found[0]} channels; colours are not converted here: "
            "prepare the images so, or remove it"
        )
    try:
        # Of either phase: where the square is cut does not change its shape.
        seen = _plain_normalise(blob, "TEST").row_shape(found)
    except DataError as error:
        raise NetError(f"{where}: {error}") from error
    # A database layer takes whatever shape its records have, as in Caffe; the others give theirs in the file.
    expected = blob.shape[1:] if blob.shape is not None and blob.kind not in _DATABASES else seen
    if seen != expected:
        raise NetError(
            f"{where}: expected rows of shape {expected}, got {seen}; give the data that the net is made for, or "
            "correct the shape in that layer"
        )
    return seen


def _label_shape(spec: NetSpec, blob: InputBlob, batch: int) -> Shape:
    rest = blob.shape[1:] if blob.shape is not None else ()
    if any(size != 1 for size in rest):
        raise NetError(
            f"{spec.source}: layer {blob.layer!r} ({blob.kind}): expected labels of shape {rest} a row, got one "
            "number; nets with several labels a row are not fed here"
        )
    return (batch, *rest)
