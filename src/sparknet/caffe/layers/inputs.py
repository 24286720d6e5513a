"""Layers without bottoms: what a net must be given, and what the file says about it.

Data layers do not read anything here. They become the net's input contract: names, shapes, batch size and the
transformation that whoever feeds the net is to apply.
"""

import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from sparknet.caffe.layers.layer import Shape
from sparknet.caffe.schema import LayerParameter
from sparknet.errors import NetError

__all__ = ["INPUT_LAYERS", "InputBlob", "Transform", "input_blobs"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Transform:
    """What a data layer does to an image: (x - mean) * scale, cropped and perhaps mirrored."""

    scale: float = 1.0
    mirror: bool = False
    """Each image is mirrored left to right with probability 1/2, in both phases."""
    crop_size: int = 0
    """Side of the square that is cut out, at random in TRAIN and from the centre in TEST; 0: the whole image."""
    mean_file: str = ""
    """A `binaryproto` file with the mean image."""
    mean_values: tuple[float, ...] = ()
    """One value, or one per channel."""
    force_color: bool = False
    force_gray: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class InputBlob:
    """One blob that the net must be given."""

    name: str
    layer: str
    """Name of the layer that stands for it."""
    kind: str
    """That layer's type."""
    place: int
    """Which of that layer's tops it is, from 0: a data layer's second top holds the labels."""
    shape: Shape | None
    """With the batch axis; None where the file does not tell."""
    transform: Transform = Transform()
    source: str = ""
    """The data layer's file or database, as the file gives it."""


def _input(layer: LayerParameter) -> list[Shape | None]:
    shapes = [tuple(shape.dim) for shape in layer.input_param.shape]
    if len(shapes) not in (0, 1, len(layer.top)):
        raise NetError(
            f"input_param has {len(shapes)} shapes for {len(layer.top)} tops; give one for all or one for each"
        )
    return list(shapes) if len(shapes) > 1 else [shapes[0] if shapes else None] * len(layer.top)


def _data(layer: LayerParameter) -> list[Shape | None]:
    batch = _batch(layer.data_param.batch_size, "data_param")
    return [_cropped(layer, batch, _channels(layer)), *_labels(layer, batch)]


def _image_data(layer: LayerParameter) -> list[Shape | None]:
    source = layer.image_data_param
    batch, channels = _batch(source.batch_size, "image_data_param"), 3 if source.is_color else 1
    height, width = source.new_height, source.new_width
    if bool(height) != bool(width):
        raise NetError(f"image_data_param has new_height {height} and new_width {width}; give both or none")
    side = layer.transform_param.crop_size
    if height and side > min(height, width):
        raise NetError(f"crop_size is {side} and the images are made {height} x {width}; it must not be greater")
    shape = _cropped(layer, batch, channels)
    if shape is None and height:
        shape = (batch, channels, height, width)
    return [shape, *_labels(layer, batch)]


def _window_data(layer: LayerParameter) -> list[Shape | None]:
    batch = _batch(layer.window_data_param.batch_size, "window_data_param")
    # window_data_layer.cpp: every window is warped to this side, so without it there is no size
    # (CHECK_GT(crop_size, 0)).
    if not layer.transform_param.crop_size:
        raise NetError("transform_param has no crop_size; give the side to which windows are brought")
    return [_cropped(layer, batch, 3), *_labels(layer, batch)]


def _memory_data(layer: LayerParameter) -> list[Shape | None]:
    source = layer.memory_data_param
    shape = (source.batch_size, source.channels, source.height, source.width)
    if 0 in shape:
        raise NetError(
            f"memory_data_param has batch_size, channels, height, width {', '.join(map(str, shape))}; "
            "give all four, at least 1"
        )
    return [shape, *_labels(layer, source.batch_size)]


def _hdf5_data(layer: LayerParameter) -> list[Shape | None]:
    batch = _batch(layer.hdf5_data_param.batch_size, "hdf5_data_param")
    # hdf5_data_layer.cpp refuses it too, HDF5 being of any kind of numbers.
    if layer.HasField("transform_param"):
        raise NetError("it has a transform_param; HDF5Data gives numbers as they are: leave it out")
    first = _first_of_list(layer.hdf5_data_param.source)
    if first is None:
        return [None] * len(layer.top)  # only the HDF5 files know, and they are elsewhere
    return [(batch, *shape) for shape in _item_shapes(first, layer.top)]


def _first_of_list(source: str) -> Path | None:
    """The first HDF5 file of a list, if both are on this machine."""
    try:
        names = Path(source).read_text(encoding="utf-8").split() if _is_file(source) else []
        return Path(names[0]) if names and _is_file(names[0]) else None
    except (OSError, ValueError) as error:
        raise NetError(
            f"hdf5_data_param's source {source!r} cannot be read as a list of HDF5 files: {error}; expected UTF-8 "
            "text with a path on each line"
        ) from error


def _is_file(path: str) -> bool:
    """Unlike `Path.is_file`, raises ValueError for what can be no path."""
    try:
        return stat.S_ISREG(Path(path).stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


def _item_shapes(path: Path, names: Iterable[str]) -> list[Shape]:
    """Shapes of the datasets of an HDF5 file without their first axis."""
    # Imported here, as wherever HDF5 is read: nets without it need not have it.
    import h5py

    try:
        with h5py.File(path) as file:
            shapes: list[Shape] = []
            for name in names:
                found = file.get(name)
                if not isinstance(found, h5py.Dataset) or not found.shape:
                    raise NetError(
                        f"{str(path)!r} has no dataset {name!r} with a batch axis, as the top of that name needs; "
                        f"there are {', '.join(map(repr, file)) or 'none'}"
                    )
                shapes.append(tuple(found.shape[1:]))
            return shapes
    except (OSError, RuntimeError, ValueError) as error:
        raise NetError(f"{str(path)!r} cannot be read as HDF5: {error}") from error


def _batch(size: int, field: str) -> int:
    if size < 1:
        raise NetError(f"{field} has batch_size {size}; give one of at least 1")
    return size


def _channels(layer: LayerParameter) -> int:
    """Channels as far as the transformation tells, else 0."""
    transform = layer.transform_param
    if transform.force_gray or transform.force_color:
        return 1 if transform.force_gray else 3
    # A single mean value serves any number of channels, so only several of them tell it.
    return len(transform.mean_value) if len(transform.mean_value) > 1 else 0


def _cropped(layer: LayerParameter, batch: int, channels: int) -> Shape | None:
    side = layer.transform_param.crop_size
    return (batch, channels, side, side) if side and channels else None


def _labels(layer: LayerParameter, batch: int) -> list[Shape | None]:
    # data_layer.cpp: labels are a vector; losses take any shape of so many.
    return [(batch,)] * (len(layer.top) - 1)


_Shapes = Callable[[LayerParameter], list[Shape | None]]

INPUT_LAYERS: dict[str, _Shapes] = {
    "Input": _input,
    "Data": _data,
    "ImageData": _image_data,
    "WindowData": _window_data,
    "MemoryData": _memory_data,
    "HDF5Data": _hdf5_data,
}
"""Layer types that are given by whoever runs the net, and the shapes of their tops as far as the file tells."""

_SOURCES = {
    "Data": "data_param",
    "ImageData": "image_data_param",
    "WindowData": "window_data_param",
    "HDF5Data": "hdf5_data_param",
}


# As the layers' headers say (MinTopBlobs, MaxTopBlobs, ExactNumTopBlobs): only Data may do without labels.
_TOP_COUNTS: dict[str, tuple[int, int | None]] = {
    "Data": (1, 2),
    "ImageData": (2, 2),
    "WindowData": (2, 2),
    "MemoryData": (2, 2),
}
"""Least and greatest number of tops; of the others, one or more."""


def input_blobs(layer: LayerParameter) -> list[InputBlob]:
    """The blobs that a layer of `INPUT_LAYERS` stands for.

    An HDF5Data layer's shapes are those of the first file in its list, where that is on this machine.

    Raises:
        NetError: its shapes do not fit its tops, or it lacks a size, or its transformation contradicts itself.
    """
    least, most = _TOP_COUNTS.get(layer.type, (1, None))
    if len(layer.top) < least or (most is not None and len(layer.top) > most):
        expected = f"{least} or more" if most is None else str(least) if least == most else f"{least} or {most}"
        raise NetError(f"it has {len(layer.top)} tops; a layer of this type has {expected}")
    shapes = INPUT_LAYERS[layer.type](layer)
    transform = _transform(layer, shapes[0])
    source = getattr(layer, _SOURCES[layer.type]).source if layer.type in _SOURCES else ""
    return [
        InputBlob(
            name=name,
            layer=layer.name,
            kind=layer.type,
            place=place,
            shape=shape,
            # Labels are never transformed.
            transform=transform if place == 0 else Transform(),
            source=source,
        )
        for place, (name, shape) in enumerate(zip(layer.top, shapes, strict=True))
    ]


def _transform(layer: LayerParameter, shape: Shape | None) -> Transform:
    given = layer.transform_param
    # data_transformer.cpp refuses these three as well.
    if given.mean_file and given.mean_value:
        raise NetError(
            f"transform_param has mean_file {given.mean_file!r} and mean_value "
            f"{', '.join(map(str, given.mean_value))}; give one of them"
        )
    if given.force_color and given.force_gray:
        raise NetError("transform_param has force_color and force_gray; give one of them")
    if shape is not None and len(shape) > 1 and len(given.mean_value) not in (0, 1, shape[1]):
        raise NetError(
            f"transform_param has {len(given.mean_value)} mean_value for {shape[1]} channels; give one for "
            "all or one for each"
        )
    return Transform(
        # window_data_layer.cpp alone does not look at the scale that all others take.
        scale=layer.window_data_param.scale if layer.type == "WindowData" else given.scale,
        mirror=given.mirror,
        crop_size=given.crop_size,
        mean_file=given.mean_file,
        mean_values=tuple(given.mean_value),
        force_color=given.force_color,
        force_gray=given.force_gray,
    )
