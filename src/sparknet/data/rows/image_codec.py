"""Encoded images to pixels and back: JPEG, PNG, GIF, BMP, WebP and TIFF, told apart by their first bytes.

JPEGs are decoded by libjpeg-turbo through simplejpeg, which is as fast as OpenCV and, unlike it, tells of damage
inside the file; PNGs by OpenCV; the others, which are rare, by Pillow. All give what `cv2.imdecode` with
IMREAD_COLOR gives, which is what Caffe trained on:

* grey becomes three equal channels, alpha is dropped, 16 bits become 8, CMYK becomes RGB;
* of an animation the first frame is taken;
* a JPEG is turned as its EXIF orientation says; other formats are taken as they lie.

`decode_stored` gives what it gives with IMREAD_UNCHANGED: the channels that the file has, and nothing is turned.
"""

import io
import struct
import zlib
from typing import Any, Literal

import cv2
import numpy as np
import simplejpeg
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from sparknet.data.rows.columns import ImageForm, ImageHeader
from sparknet.errors import BadImage, DataError

__all__ = [
    "MOST_PIXELS",
    "Space",
    "StoredSpace",
    "convert_space",
    "decode",
    "decode_into",
    "decode_stored",
    "encode_jpeg",
    "header_of",
    "in_order",
    "is_encoded",
    "resize",
    "size_of",
    "write_planes",
]

Space = Literal["gray", "rgb", "bgr"]
StoredSpace = Literal["gray", "rgb", "bgr", "bgra"]

# A worker's cores are shared out by Spark, and images are decoded by several Python threads: OpenCV's own threads
# would fight both for the cores, and a process forked with them running can hang.
cv2.setNumThreads(0)

MOST_PIXELS = 89_478_485
"""Images with more pixels are refused: 256 MiB as RGB, where Pillow starts to warn of decompression bombs."""

_MOST_SCANNED = 24 * MOST_PIXELS  # pixels times scans of a JPEG: a progressive one has ten scans, a bomb thousands
_LEAST_SCAN = 10  # bytes

_PNG = b"\x89PNG\r\n\x1a\n"
_RARE: dict[str, Any] = {"GIF": GifImageFile, "BMP": BmpImageFile, "WebP": WebPImageFile, "TIFF": TiffImageFile}
_SIZE_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # SOF0..SOF15, without DHT, JPG and DAC
_PNG_GREY, _PNG_GREY_ALPHA, _PNG_COLOUR_ALPHA = 0, 4, 6
_BARE_MARKERS = frozenset((0x01, *range(0xD0, 0xD9)))  # they have no length
_END_MARKERS = frozenset((0xD9, 0xDA))  # EOI and SOS: no size comes after them

_CONVERSIONS: dict[tuple[StoredSpace, Space], int] = {
    ("rgb", "bgr"): cv2.COLOR_RGB2BGR,
    ("rgb", "gray"): cv2.COLOR_RGB2GRAY,
    ("bgr", "rgb"): cv2.COLOR_BGR2RGB,
    ("bgr", "gray"): cv2.COLOR_BGR2GRAY,
    ("bgra", "rgb"): cv2.COLOR_BGRA2RGB,
    ("bgra", "bgr"): cv2.COLOR_BGRA2BGR,
    ("bgra", "gray"): cv2.COLOR_BGRA2GRAY,
    ("gray", "rgb"): cv2.COLOR_GRAY2RGB,
    ("gray", "bgr"): cv2.COLOR_GRAY2BGR,
}


def is_encoded(data: bytes | memoryview) -> bool:
    """Tell whether `data` begins as a JPEG, PNG, GIF, BMP, WebP or TIFF."""
    return bool(_format(bytes(data[:16])))


def size_of(data: bytes | memoryview) -> tuple[int, int]:
    """Height and width in pixels, from the header alone and turned as `decode` turns.

    Raises:
        BadImage: no image, a damaged header, or more than `MOST_PIXELS`.
    """
    data = bytes(data)
    kind = _format(data)
    if kind == "JPEG":
        height, width, turn, _ = _jpeg_header(data)
        # Orientations 5 to 8 stand the image on its side.
        return (width, height) if turn >= 5 else (height, width)
    if kind == "PNG":
        return _png_size(data)
    return _opened(data, kind).size[::-1]


def header_of(data: bytes | memoryview) -> ImageHeader:
    """What a file says of itself; of formats other than JPEG and PNG it is decoded for that.

    Raises:
        BadImage: as for `size_of`, and what `decode_stored` finds.
    """
    data = bytes(data)
    kind, upright = _format(data), size_of(data)
    if kind == "JPEG":
        height, width, _, components = _jpeg_header(data)
        return ImageHeader(size=(height, width), upright=upright, channels=1 if components == 1 else 3, bits=8)
    if kind == "PNG":
        return ImageHeader(
            size=upright, upright=upright, channels=_png_channels(data), bits=16 if data[24] == 16 else 8
        )
    image = _unchanged(data, kind)
    return ImageHeader(size=upright, upright=upright, channels=image.shape[2], bits=8 * image.itemsize)


def decode_stored(data: bytes | memoryview, *, order: Literal["rgb", "bgr"]) -> np.ndarray:
    """Decode an image to uint8 [height, width, channels] with the channels that it has, as it lies.

    Args:
        data: the file's content.
        order: of colours; a fourth channel is alpha.

    Raises:
        BadImage: no image, cut short, damaged, more than `MOST_PIXELS`, or with values of more than 8 bits.
    """
    data = bytes(data)
    kind = _format(data)
    if kind == "JPEG":
        *_, components = _jpeg_header(data)
        return _decode_jpeg(data, "gray" if components == 1 else order, turned=False)
    size_of(data)
    image = _unchanged(data, kind)
    if image.dtype != np.uint8:
        raise BadImage(
            f"the {kind} has values of {8 * image.itemsize} bits; with channels as they are stored it must have 8: "
            "convert it first"
        )
    return in_order(image, order)


def in_order(image: np.ndarray, order: Literal["rgb", "bgr"]) -> np.ndarray:
    """Bring uint8 [height, width, 1, 3 or 4] from OpenCV's order, blue first, to another; alpha stays last."""
    if order == "bgr" or image.shape[2] == 1:
        return image
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB if image.shape[2] == 3 else cv2.COLOR_BGRA2RGBA)


def decode(data: bytes | memoryview, *, channels: int, order: Literal["rgb", "bgr"]) -> np.ndarray:
    """Decode an image to uint8 [height, width, channels], 0..255, C-contiguous.

    Args:
        data: the file's content.
        channels: 3, or 1 for the luminance.
        order: of three channels.

    Raises:
        BadImage: no image, cut short, damaged, or more than `MOST_PIXELS`.
        DataError: another number of channels.
    """
    if channels not in (1, 3):
        raise DataError(f"images cannot be decoded to {channels} channels; it must be 1 or 3: set data.shape so")
    data = bytes(data)
    kind = _format(data)
    space: Space = "gray" if channels == 1 else order
    if kind == "JPEG":
        return _decode_jpeg(data, space)
    return _decode_png(data, space) if kind == "PNG" else convert_space(_decode_rare(data, kind), "rgb", space)


def convert_space(image: np.ndarray, held: StoredSpace, wanted: Space) -> np.ndarray:
    """Turn uint8 [height, width, channels] of one colour space into another; alpha is dropped."""
    if held == wanted:
        return image
    # OpenCV drops the axis of a single channel.
    return cv2.cvtColor(image, _CONVERSIONS[held, wanted]).reshape(*image.shape[:2], -1)


def resize(image: np.ndarray, size: tuple[int, int], mode: Literal["exact", "shorter_side"]) -> np.ndarray:
    """Scale an image bilinearly, without smoothing it first, as Caffe did (`cv2.resize`, INTER_LINEAR).

    Args:
        image: uint8 [height, width, channels].
        size: height and width to make.
        mode: "exact" stretches; "shorter_side" covers the size with the proportions kept and cuts out the middle.

    Returns:
        uint8 [*size, channels]; `image` itself where nothing is to be done.

    Raises:
        BadImage: a strip so long that covering the size would make more than `MOST_PIXELS`.
    """
    height, width = image.shape[:2]
    if mode == "shorter_side":
        scale = max(size[0] / height, size[1] / width)
        # At least the size, whatever rounding makes of a product.
        covering = max(size[0], round(height * scale)), max(size[1], round(width * scale))
        _check_size(*covering)
        top, left = (covering[0] - size[0]) // 2, (covering[1] - size[1]) // 2
        return resize(image, covering, "exact")[top : top + size[0], left : left + size[1]]
    if (height, width) == size:
        return image
    # OpenCV takes width before height, and drops an axis of one.
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR).reshape(*size, image.shape[2])


def decode_into(out: np.ndarray, data: bytes | memoryview, *, form: ImageForm) -> None:
    """Decode an image, scale it to the size of `out` where it has another, and write its planes.

    Args:
        out: uint8 [channels, height, width], C-contiguous; undefined after an error.
        data: the file's content.
        form: order of the channels and how to scale.

    Raises:
        BadImage: as `decode` and `resize`.
        DataError: as `decode`.
    """
    if not form.as_stored:
        write_planes(out, decode(data, channels=len(out), order=form.order), form=form)
        return
    image = decode_stored(data, order=form.order)
    if image.shape[2] != len(out):
        raise BadImage(f"the image has {image.shape[2]} channels and {len(out)} are wanted: leave it out")
    write_planes(out, image, form=form)


def write_planes(out: np.ndarray, image: np.ndarray, *, form: ImageForm) -> None:
    """Scale an image, uint8 [height, width, channels], to `out`'s size and write its planes, as `decode_into`."""
    image = resize(image, out.shape[1:], form.resize_mode)
    if len(out) == 1:
        out[0] = image[..., 0]
    else:
        # Straight into the planes: a transposed copy would pass over the memory once more.
        cv2.split(image, tuple(out))


def encode_jpeg(image: np.ndarray, *, quality: int = 90, order: Literal["rgb", "bgr"] = "rgb") -> bytes:
    """Encode uint8 [height, width, 3] as a JPEG with halved colour (4:2:0); the same pixels give the same bytes.

    Args:
        image: the pixels, 0..255.
        quality: 1 to 100.
        order: of the channels.
    """
    # 4:2:0 is what libjpeg writes by default.
    return simplejpeg.encode_jpeg(np.ascontiguousarray(image), quality, order, "420")


def _format(data: bytes) -> str:
    """The name of the format that `data` begins as; empty for none."""
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(_PNG):
        return "PNG"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WebP"
    if data.startswith((b"II*\0", b"MM\0*")):
        return "TIFF"
    # Two letters alone would make images of texts: the header's reserved bytes are zero too.
    return "BMP" if data.startswith(b"BM") and data[6:10] == bytes(4) and len(data) > 10 else ""


def _check_size(height: int, width: int) -> None:
    if not 0 < height * width <= MOST_PIXELS:
        raise BadImage(
            f"the image is {width} x {height} pixels; it must have 1 to {MOST_PIXELS} in all: leave it out or "
            "scale it down first"
        )


def _jpeg_header(data: bytes) -> tuple[int, int, int, int]:
    """Height, width, EXIF orientation, 1 to 8, and number of components of a JPEG."""
    at, turn = 2, 1
    while at + 4 <= len(data):
        marker = data[at + 1]
        if data[at] != 0xFF or marker in _END_MARKERS:
            break
        # Fill bytes may stand before a marker, and bare markers anywhere.
        if marker == 0xFF or marker in _BARE_MARKERS:
            at += 1 if marker == 0xFF else 2
            continue
        length = int.from_bytes(data[at + 2 : at + 4])
        if marker in _SIZE_MARKERS and at + 10 <= len(data):
            height, width = struct.unpack_from(">HH", data, at + 5)
            _check_size(height, width)
            return height, width, turn, data[at + 9]
        if marker == 0xE1 and data[at + 4 : at + 10] == b"Exif\0\0":
            turn = _orientation(data[at + 10 : at + 2 + length])
        at += 2 + length
    raise BadImage(f"the JPEG of {len(data)} bytes has no header: it is damaged or cut short; fetch it again")


def _orientation(exif: bytes) -> int:
    """The orientation of an EXIF block, 1 to 8; 1 where it is missing or makes no sense."""
    end = {b"II": "<", b"MM": ">"}.get(exif[:2], "")
    if not end or len(exif) < 10:
        return 1
    (first,) = struct.unpack_from(end + "I", exif, 4)
    # The count is the file's claim; the loop is bounded by the bytes that are there.
    count = struct.unpack_from(end + "H", exif, first)[0] if first + 2 <= len(exif) else 0
    for at in range(first + 2, min(first + 2 + 12 * count, len(exif) - 11), 12):
        tag, kind, _, value = struct.unpack_from(end + "HHIH", exif, at)
        if tag == 0x0112 and kind == 3:
            return value if 1 <= value <= 8 else 1
    return 1


def _decode_jpeg(data: bytes, space: Space, *, turned: bool = True) -> np.ndarray:
    # Our own walk over the markers first: it finds the orientation, and refuses a size before memory is reserved
    # for it.
    *_, turn, _ = _jpeg_header(data)
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(data)
        _check_scans(data, height=int(height), width=int(width))
        image = simplejpeg.decode_jpeg(data, space)  # strict: raises on what libjpeg only warns of
    except ValueError as error:
        raise BadImage(f"the JPEG of {len(data)} bytes is damaged or cut short: {error}; fetch it again") from error
    return _turned(image, turn) if turned and turn > 1 else image


def _check_scans(data: bytes, *, height: int, width: int) -> None:
    _check_size(height, width)
    if height * width * (len(data) // _LEAST_SCAN) <= _MOST_SCANNED:
        return  # counting takes a tenth of decoding
    scans = data.count(b"\xff\xda")
    if height * width * scans > _MOST_SCANNED:
        raise BadImage(
            f"the JPEG of {width} x {height} pixels has {scans} scans; it may have "
            f"{_MOST_SCANNED // (height * width)}: leave it out"
        )


def _turned(image: np.ndarray, turn: int) -> np.ndarray:
    """The image set upright: EXIF orientations 5 to 8 lie on their side, and each is mirrored in its own way."""
    if turn >= 5:
        image = image.transpose(1, 0, 2)
    rows = slice(None, None, -1) if turn in (3, 4, 7, 8) else slice(None)
    columns = slice(None, None, -1) if turn in (2, 3, 6, 7) else slice(None)
    return np.ascontiguousarray(image[rows, columns])


def _png_size(data: bytes) -> tuple[int, int]:
    if len(data) < 33 or data[12:16] != b"IHDR":
        raise BadImage(f"the PNG of {len(data)} bytes has no header: it is damaged or cut short; fetch it again")
    width, height = struct.unpack_from(">II", data, 16)
    _check_size(height, width)
    return height, width


def _decode_png(data: bytes, space: Space) -> np.ndarray:
    _png_size(data)
    # Only what makes the pixels: profiles, animations and texts make libpng slow and talkative.
    data = _PNG + b"".join(_chunks(data))
    flag = cv2.IMREAD_GRAYSCALE if space == "gray" else cv2.IMREAD_COLOR
    image: np.ndarray | None = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
    if image is None:
        raise BadImage(f"the PNG of {len(data)} bytes is damaged; fetch it again")
    return image[..., None] if space == "gray" else convert_space(image, "bgr", space)


def _png_channels(data: bytes) -> int:
    # Transparency is a channel of its own, or a chunk that makes one of a colour.
    if data[25] in (_PNG_GREY_ALPHA, _PNG_COLOUR_ALPHA):
        return 4
    if data[25] == _PNG_GREY:
        return 1
    return 4 if any(chunk[4:8] == b"tRNS" for chunk in _chunks(data, b"tRNS")) else 3


def _unchanged(data: bytes, kind: str) -> np.ndarray:
    """[height, width, channels] as OpenCV gives it with IMREAD_UNCHANGED; the size has been looked at."""
    if kind == "PNG":
        data = _PNG + b"".join(_chunks(data, b"tRNS"))
    image: np.ndarray | None = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if image is None:
        raise BadImage(
            f"the {kind} of {len(data)} bytes is damaged, or of a form that is not read; convert it first"
        )
    return image[..., None] if image.ndim == 2 else image


def _chunks(data: bytes, *others: bytes) -> list[bytes]:
    """The chunks that a PNG cannot do without, and others by name, to its end, with their checksums checked."""
    at, chunks = len(_PNG), list[bytes]()
    while at + 12 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4])
        kind = data[at + 4 : at + 8]
        if kind[0] & 0x20 == 0 or kind in others:  # a capital letter: it cannot be done without
            chunk = data[at:end]
            if len(chunk) < end - at or zlib.crc32(chunk[4:-4]) != int.from_bytes(chunk[-4:]):
                break
            chunks.append(chunk)
            if kind == b"IEND":
                return chunks
        at = end
    raise BadImage(f"the PNG of {len(data)} bytes is damaged or cut short at byte {at}; fetch it again")


def _opened(data: bytes, kind: str) -> Any:
    """A Pillow image of which only the header is read."""
    if kind not in _RARE:
        raise BadImage(
            f"{len(data)} bytes that begin with {data[:8]!r} are no image; known are JPEG, PNG, {', '.join(_RARE)}"
        )
    try:
        # By its class and not by `Image.open`, which would try every plug-in that is installed, those that start
        # programs too.
        image = _RARE[kind](io.BytesIO(data))
    except MemoryError:
        raise
    except Exception as error:  # damage makes Pillow raise whatever its arithmetic stumbles over
        raise BadImage(
            f"the {kind} of {len(data)} bytes has a damaged header: {error!r}; fetch it again"
        ) from error
    width, height = image.size
    _check_size(height, width)
    return image


def _decode_rare(data: bytes, kind: str) -> np.ndarray:
    """A GIF, BMP, WebP or TIFF as RGB."""
    image = _opened(data, kind)
    # 32 bits say nothing of where white is.
    if image.mode in ("F", "I"):
        raise BadImage(f"the {kind} has pixels of kind {image.mode}; they must have 8 or 16 bits: convert it first")
    try:
        if image.mode.startswith("I;16"):  # Pillow would clip these to 255
            return cv2.cvtColor((np.asarray(image) >> 8).astype(np.uint8), cv2.COLOR_GRAY2RGB)
        return np.asarray(image.convert("RGB"))
    except MemoryError:
        raise
    except Exception as error:  # as above
        raise BadImage(
            f"the {kind} of {len(data)} bytes is damaged or cut short: {error!r}; fetch it again"
        ) from error
