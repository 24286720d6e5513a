"""Images of every format and kind decode as OpenCV decodes them; whatever is cut short or too large is told."""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from sparknet.data.rows import image_codec as decoding
from sparknet.data.rows.columns import ImageForm
from sparknet.data.rows.image_codec import (
    MOST_PIXELS,
    convert_space,
    decode,
    decode_into,
    decode_stored,
    encode_jpeg,
    header_of,
    is_encoded,
    resize,
    size_of,
    write_planes,
)
from sparknet.errors import BadImage, DataError

HEIGHT, WIDTH = 60, 84


def photograph() -> np.ndarray:
    """Smooth colours with an edge and some noise: no two of its sides are alike."""
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32)
    planes = np.stack([rows * 4, columns * 3, 255 - rows - columns], axis=2)
    planes[10:30, 50:70] = (250, 20, 90)
    noise = np.random.default_rng(0).normal(0, 4, planes.shape)
    return np.clip(planes + noise, 0, 255).astype(np.uint8)


PHOTOGRAPH = photograph()
PICTURE = Image.fromarray(PHOTOGRAPH)


def encoded(kind, picture=PICTURE, **choices) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **choices)
    return file.getvalue()


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x010F] = "a maker"
    exif[0x0112] = orientation
    return exif


def png_of(pixels: np.ndarray) -> bytes:
    return cv2.imencode(".png", pixels)[1].tobytes()


DEEP = (np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) * 13).astype(np.uint16)
ALPHA = np.dstack([PHOTOGRAPH, np.arange(WIDTH, dtype=np.uint8)[None].repeat(HEIGHT, 0)])
FILES = {
    "jpeg": encoded("JPEG", quality=90),
    "jpeg 4:4:4": encoded("JPEG", quality=90, subsampling=0),
    "jpeg progressive": encoded("JPEG", progressive=True),
    "jpeg grey": encoded("JPEG", PICTURE.convert("L")),
    "jpeg cmyk": encoded("JPEG", PICTURE.convert("CMYK")),
    **{f"jpeg turned {number}": encoded("JPEG", exif=turned(number)) for number in range(1, 9)},
    "png": encoded("PNG"),
    "png grey": encoded("PNG", PICTURE.convert("L")),
    "png alpha": encoded("PNG", Image.fromarray(ALPHA)),
    "png grey alpha": encoded("PNG", Image.fromarray(ALPHA).convert("LA")),
    "png palette": encoded("PNG", PICTURE.convert("P"), transparency=3),
    "png one bit": encoded("PNG", PICTURE.convert("1")),
    "png 16 bits": encoded("PNG", Image.fromarray(DEEP)),
    "png 48 bits": png_of(np.dstack([DEEP, DEEP * 3, DEEP * 7])),
    "gif": encoded("GIF"),
    "bmp": encoded("BMP"),
    "webp": encoded("WebP"),
    "webp lossless": encoded("WebP", lossless=True),
    "tiff": encoded("TIFF"),
    "tiff lzw": encoded("TIFF", compression="tiff_lzw"),
    "tiff 16 bits": encoded("TIFF", Image.fromarray(DEEP)),
}


def opencv(content: bytes, flag: int = cv2.IMREAD_COLOR) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(content, np.uint8), flag)


def furthest(one: np.ndarray, other: np.ndarray) -> int:
    assert one.shape == other.shape
    return int(np.abs(one.astype(int) - other).max())


@pytest.mark.parametrize("name", FILES)
def test_three_channels_are_those_of_opencv(name):
    content, expected = FILES[name], opencv(FILES[name])
    got = decode(content, channels=3, order="bgr")
    assert (got.dtype, got.flags.c_contiguous) == (np.uint8, True)
    assert furthest(got, expected) == 0
    assert (decode(memoryview(content), channels=3, order="rgb") == expected[..., ::-1]).all()
    assert size_of(memoryview(content)) == expected.shape[:2]
    assert is_encoded(memoryview(content))


@pytest.mark.parametrize("name", FILES)
def test_one_channel_is_that_of_opencv(name):
    got = decode(FILES[name], channels=1, order="rgb")
    # OpenCV's and libpng's weights of the colours are rounded at other places.
    assert furthest(got[..., 0], opencv(FILES[name], cv2.IMREAD_GRAYSCALE)) <= 1


@pytest.mark.parametrize("name", FILES)
def test_stored_channels_are_those_of_opencv_unchanged(name):
    content, expected = FILES[name], opencv(FILES[name], cv2.IMREAD_UNCHANGED)
    header = header_of(content)
    expected = expected.reshape(*expected.shape[:2], -1)
    assert (header.size, header.channels, header.bits) == (
        expected.shape[:2],
        expected.shape[2],
        8 * expected.itemsize,
    )
    if header.bits == 16:
        with pytest.raises(
            BadImage, match="has values of 16 bits; with channels as they are stored it must have 8"
        ):
            decode_stored(content, order="bgr")
        return
    got = decode_stored(content, order="bgr")
    assert furthest(got, expected) == 0
    colours = decode_stored(content, order="rgb")[..., :3]
    assert (colours == (expected if expected.shape[2] == 1 else expected[..., 2::-1])).all()


def test_a_header_tells_how_an_image_lies_and_how_it_stands():
    header = header_of(FILES["jpeg turned 6"])
    assert (header.size, header.upright) == ((HEIGHT, WIDTH), (WIDTH, HEIGHT))


def test_planes_as_stored_must_be_as_many():
    form = ImageForm(order="bgr", as_stored=True)
    planes = np.zeros((4, HEIGHT, WIDTH), np.uint8)
    decode_into(planes, FILES["png alpha"], form=form)
    assert (planes == opencv(FILES["png alpha"], cv2.IMREAD_UNCHANGED).transpose(2, 0, 1)).all()
    with pytest.raises(BadImage, match="has 1 channels and 4 are wanted"):
        decode_into(planes, FILES["png grey"], form=form)


def test_decoded_pixels_are_the_photograph():
    assert (decode(FILES["png"], channels=3, order="rgb") == PHOTOGRAPH).all()
    assert (decode(FILES["png alpha"], channels=3, order="rgb") == PHOTOGRAPH).all()
    assert (decode(FILES["png 16 bits"], channels=1, order="rgb")[..., 0] == DEEP >> 8).all()
    assert np.abs(decode(FILES["jpeg"], channels=3, order="rgb").astype(int) - PHOTOGRAPH).mean() < 6


def test_a_turned_jpeg_is_set_upright():
    upright = decode(FILES["jpeg turned 1"], channels=3, order="rgb")
    assert furthest(decode(FILES["jpeg turned 3"], channels=3, order="rgb"), upright[::-1, ::-1]) == 0
    lying = decode(FILES["jpeg turned 6"], channels=3, order="rgb")
    assert lying.shape == (WIDTH, HEIGHT, 3)
    assert furthest(lying, np.rot90(upright, -1)) == 0
    assert size_of(FILES["jpeg turned 6"]) == (WIDTH, HEIGHT)


def exif_jpeg(block: bytes) -> bytes:
    plain = FILES["jpeg"]
    return plain[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 8) + b"Exif\0\0" + block + plain[2:]


@pytest.mark.parametrize(
    ("block", "upright"),
    [
        (b"MM\0*\0\0\0\x08\0\1\x01\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0", False),
        (b"II*\0\x08\0\0\0\1\0\x12\x01\3\0\1\0\0\0\6\0\0\0\0\0\0\0", False),
        (b"MM\0*\0\0\0\x08\0\1\x01\x12\0\3\0\0\0\1\0\x63\0\0\0\0\0\0", True),
        (b"MM\0*\0\0\0\x08\0\1\x01\x12\0\2\0\0\0\1\0\6\0\0\0\0\0\0", True),
        (b"MM\0*\xff\xff\xff\xff\0\1", True),
        (b"MM\0*\0\0\0\x08\xff\xff\x01", True),
        (b"XX\0*\0\0\0\x08\0\1", True),
        (b"", True),
    ],
    ids=["big-endian", "little-endian", "orientation 99", "of bytes", "far away", "cut", "no byte order", "empty"],
)
def test_orientations_of_both_byte_orders_and_senseless_ones(block, upright):
    assert size_of(exif_jpeg(block)) == ((HEIGHT, WIDTH) if upright else (WIDTH, HEIGHT))


def test_an_animation_gives_its_first_frame():
    more = {"save_all": True, "append_images": [PICTURE.rotate(180)], "duration": 100}
    for kind in ("GIF", "WebP"):
        animation = encoded(kind, lossless=True, **more)
        alone = encoded(kind, lossless=True)
        assert furthest(decode(animation, channels=3, order="rgb"), decode(alone, channels=3, order="rgb")) == 0


def test_the_content_decides_not_the_name():
    names = {"JPEG", "PNG", "GIF", "BMP", "WebP", "TIFF"}
    assert {decoding._format(content) for content in FILES.values()} == names
    for content in (b"", b"BM a text", b"GIF", b"RIFF1234WAVE", b"\xff\xd8", b"\x89PNG", b"II", bytes(64)):
        assert not is_encoded(content)


@pytest.mark.parametrize("name", FILES)
def test_an_image_cut_short_is_told(name):
    content = FILES[name]
    for share in (0.05, 0.3, 0.6, 0.9):
        cut = content[: int(len(content) * share)]
        with pytest.raises(BadImage, match=r"bytes|pixels"):
            decode(cut, channels=3, order="rgb")


@pytest.mark.parametrize("gone", [slice(900, 1100), slice(-400, -200)])
def test_a_hole_in_a_jpeg_is_told(gone):
    content = encoded("JPEG", Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)))
    holed = bytearray(content)
    del holed[gone]
    with pytest.raises(BadImage, match=r"the JPEG of \d+ bytes is damaged or cut short: .*; fetch it again"):
        decode(bytes(holed), channels=3, order="rgb")
    ended = content[:1500] + b"\xff\xd9"
    with pytest.raises(BadImage, match="premature end"):
        decode(ended, channels=3, order="rgb")


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def with_chunk(content: bytes, extra: bytes) -> bytes:
    return content[:33] + extra + content[33:]


def test_a_png_is_checked_by_its_checksums():
    content = FILES["png"]
    for at in (20, 60, len(content) // 2, len(content) - 20):
        flipped = bytearray(content)
        flipped[at] ^= 0x10
        with pytest.raises(BadImage, match=r"damaged or cut short|pixels"):
            decode(bytes(flipped), channels=3, order="rgb")


def test_what_a_png_says_beside_its_pixels_is_passed_over(capfd):
    for name, body in ((b"tEXt", b"a\0b"), (b"iCCP", b"odd\0\0nothing"), (b"eXIf", b"MM\0*" + bytes(20))):
        right = chunk(name, body)
        wrong = right[:-1] + bytes([right[-1] ^ 1])
        for extra in (right, wrong):
            assert (decode(with_chunk(FILES["png"], extra), channels=3, order="rgb") == PHOTOGRAPH).all()
    assert capfd.readouterr().err == ""


def test_a_png_that_is_whole_and_senseless():
    parts = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0)), chunk(b"IEND", b"")
    with pytest.raises(BadImage, match="the PNG of 45 bytes is damaged"):
        decode(b"\x89PNG\r\n\x1a\n" + b"".join(parts), channels=3, order="rgb")
    long = chunk(b"IHDR", struct.pack(">IIBBBBB", 1 << 21, 1, 8, 2, 0, 0, 0)), parts[1]
    with pytest.raises(BadImage, match="the PNG of 45 bytes is damaged"):
        decode(b"\x89PNG\r\n\x1a\n" + b"".join(long), channels=3, order="rgb")


def test_no_image():
    for content in (b"", b"hello, world", bytes(3072)):
        with pytest.raises(BadImage, match=f"{len(content)} bytes that begin with .* are no image; known are JPEG"):
            decode(content, channels=3, order="rgb")
        with pytest.raises(BadImage, match="are no image"):
            size_of(content)


@pytest.mark.parametrize("name", ["jpeg", "png", "gif", "bmp", "webp", "tiff"])
def test_a_header_cut_short(name):
    with pytest.raises(BadImage, match=r"header|pixels"):
        size_of(FILES[name][:17])


def huge(name: str) -> bytes:
    content = bytearray(FILES[name])
    side = 30_000
    if name == "jpeg":
        struct.pack_into(">HH", content, content.index(b"\xff\xc0") + 5, side, side)
    elif name == "png":
        struct.pack_into(">II", content, 16, side, side)
        struct.pack_into(">I", content, 29, zlib.crc32(content[12:29]))
    elif name == "gif":
        struct.pack_into("<HH", content, 6, side, side)
    else:
        struct.pack_into("<ii", content, 18, side, side)
    return bytes(content)


@pytest.mark.parametrize("name", ["jpeg", "png", "gif", "bmp"])
def test_a_bomb_is_refused_by_its_header(name):
    message = f"the image is 30000 x 30000 pixels; it must have 1 to {MOST_PIXELS} in all"
    with pytest.raises(BadImage, match=message):
        size_of(huge(name))
    with pytest.raises(BadImage, match=message):
        decode(huge(name), channels=3, order="rgb")


def test_a_jpeg_without_pixels():
    content = bytearray(FILES["jpeg"])
    struct.pack_into(">HH", content, content.index(b"\xff\xc0") + 5, 0, 84)
    with pytest.raises(BadImage, match="the image is 84 x 0 pixels"):
        size_of(bytes(content))


def test_a_jpeg_of_endless_scans_is_refused(monkeypatch):
    content = FILES["jpeg progressive"]
    scans = content.count(b"\xff\xda")
    monkeypatch.setattr(decoding, "_MOST_SCANNED", HEIGHT * WIDTH * scans)
    assert decode(content, channels=3, order="rgb").shape == (HEIGHT, WIDTH, 3)
    monkeypatch.setattr(decoding, "_MOST_SCANNED", HEIGHT * WIDTH * (scans - 1))
    with pytest.raises(BadImage, match=f"84 x 60 pixels has {scans} scans; it may have {scans - 1}"):
        decode(content, channels=3, order="rgb")


@pytest.mark.parametrize(("kind", "mode"), [(np.float32, "F"), (np.int32, "I")])
def test_pixels_that_are_no_colours(kind, mode):
    wide = encoded("TIFF", Image.fromarray(PHOTOGRAPH[..., 0].astype(kind)))
    with pytest.raises(BadImage, match=f"the TIFF has pixels of kind {mode}; they must have 8 or 16 bits"):
        decode(wide, channels=3, order="rgb")


def test_memory_that_runs_out_is_not_the_images_fault(monkeypatch):
    def run_out(file):
        raise MemoryError

    monkeypatch.setitem(decoding._RARE, "GIF", run_out)
    with pytest.raises(MemoryError):
        size_of(FILES["gif"])


@pytest.mark.parametrize("channels", [0, 2, 4])
def test_numbers_of_channels_that_images_do_not_have(channels):
    with pytest.raises(DataError, match=f"to {channels} channels; it must be 1 or 3: set data.shape"):
        decode(FILES["jpeg"], channels=channels, order="rgb")


def test_exact_resizing_is_that_of_opencv_and_caffe():
    for size in ((32, 32), (7, 200), (60, 83)):
        assert furthest(resize(PHOTOGRAPH, size, "exact"), cv2.resize(PHOTOGRAPH, size[::-1])) == 0
    grey = PHOTOGRAPH[..., :1]
    assert resize(grey, (5, 6), "exact").shape == (5, 6, 1)
    assert resize(PHOTOGRAPH, (HEIGHT, WIDTH), "exact") is PHOTOGRAPH


def test_the_shorter_side_covers_and_the_middle_is_cut_out():
    got = resize(PHOTOGRAPH, (30, 30), "shorter_side")
    assert furthest(got, cv2.resize(PHOTOGRAPH, (42, 30))[:, 6:36]) == 0
    upright = PHOTOGRAPH.transpose(1, 0, 2).copy()
    assert furthest(resize(upright, (30, 30), "shorter_side"), cv2.resize(upright, (30, 42))[6:36]) == 0
    assert furthest(resize(PHOTOGRAPH, (60, 60), "shorter_side"), PHOTOGRAPH[:, 12:72]) == 0
    for height, width in ((1, 1), (2, 3), (61, 59), (400, 7)):
        assert resize(PHOTOGRAPH, (height, width), "shorter_side").shape == (height, width, 3)


def test_a_strip_that_would_cover_too_much_is_refused():
    with pytest.raises(BadImage, match="the image is 2560000 x 256 pixels"):
        resize(np.zeros((1, 10_000, 1), np.uint8), (256, 256), "shorter_side")


@pytest.mark.parametrize("order", ["rgb", "bgr"])
@pytest.mark.parametrize("mode", ["exact", "shorter_side"])
@pytest.mark.parametrize("shape", [(3, 20, 31), (1, 20, 31), (3, HEIGHT, WIDTH), (1, HEIGHT, WIDTH)])
@pytest.mark.parametrize("name", ["jpeg", "png", "gif"])
def test_planes(name, shape, mode, order):
    batch = np.zeros((3, *shape), np.uint8)
    decode_into(batch[1], FILES[name], form=ImageForm(order=order, resize_mode=mode))
    image = decode(FILES[name], channels=shape[0], order=order)
    assert (batch[1] == resize(image, shape[1:], mode).transpose(2, 0, 1)).all()
    assert not batch[0].any()
    assert not batch[2].any()


def test_pixels_are_written_as_planes():
    out = np.zeros((3, 10, 12), np.uint8)
    write_planes(out, PHOTOGRAPH, form=ImageForm())
    assert (out == cv2.resize(PHOTOGRAPH, (12, 10)).transpose(2, 0, 1)).all()


def test_colour_spaces():
    bgr = PHOTOGRAPH[..., ::-1].copy()
    grey = cv2.cvtColor(bgr, cv2.COLOR_BGR2GRAY)[..., None]
    assert (convert_space(bgr, "bgr", "rgb") == PHOTOGRAPH).all()
    assert (convert_space(cv2.cvtColor(bgr, cv2.COLOR_BGR2BGRA), "bgra", "rgb") == PHOTOGRAPH).all()
    assert (convert_space(PHOTOGRAPH, "rgb", "gray") == grey).all()
    assert (convert_space(grey, "gray", "bgr") == grey.repeat(3, axis=2)).all()
    assert convert_space(grey, "gray", "gray") is grey


def test_a_jpeg_made_here():
    content = encode_jpeg(PHOTOGRAPH)
    assert content == encode_jpeg(PHOTOGRAPH) == encode_jpeg(PHOTOGRAPH[..., ::-1], order="bgr")
    assert is_encoded(content)
    assert size_of(content) == (HEIGHT, WIDTH)
    assert np.abs(decode(content, channels=3, order="rgb").astype(int) - PHOTOGRAPH).mean() < 6
    assert len(encode_jpeg(PHOTOGRAPH, quality=30)) < len(content) < len(encode_jpeg(PHOTOGRAPH, quality=98))


def test_libraries_run_no_threads_of_their_own():
    assert cv2.getNumThreads() == 1
