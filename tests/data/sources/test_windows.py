"""Lists of windows as Caffe's WindowData reads them: which are rows, how they are cut out, and what is refused."""

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparknet.config import Data, Windows, decode
from sparknet.data.sources.files import Location
from sparknet.data.sources.opening import open_sources
from sparknet.data.sources.registry import FORMATS, find_format
from sparknet.data.sources.windows import Box, cut_window, open_source, read
from sparknet.errors import BadImage, ConfigError, DataError

SIZE = 8
PLAIN = Windows(size=SIZE)


def image_of(number: int, height: int = 20, width: int = 30) -> np.ndarray:
    """uint8 [height, width, 3]; blue, green, red."""
    return np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)


def made(directory: Path, windows: list[list[tuple]], *, channels: int = 3) -> Path:
    """Images a0.png, a1.png and so on, and a list of them with these windows."""
    directory.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, boxes in enumerate(windows):
        cv2.imwrite(str(directory / f"a{number}.png"), image_of(number))
        lines += [f"# {number}", f"a{number}.png", channels, 20, 30, len(boxes)]
        lines += [" ".join(map(str, box)) for box in boxes]
    file = directory / "windows.txt"
    file.write_text("\n".join(map(str, lines)) + "\n")
    return file


def where(file: Path, windows: Windows = PLAIN, **options) -> Location:
    return Location(path=str(file), windows=windows, order="bgr", **options)


def rows_of(location: Location) -> list[dict]:
    source = open_source(location)
    return [row for part in source.partitions for batch in read(part) for row in batch.to_pylist()]


def pixels_of(row: dict) -> np.ndarray:
    return np.frombuffer(row["image"], np.uint8).reshape(3, SIZE, SIZE)


FOREGROUND = [(5, 1.0, 2, 3, 9, 12), (7, 0.5, 0, 0, 29, 19)]
BACKGROUND = [(5, 0.49, 1, 1, 4, 4), (2, 0.0, 3, 3, 8, 8), (9, 0.1, 0, 0, 2, 2)]


def test_foreground_has_its_label_and_background_none(tmp_path: Path) -> None:
    file = made(tmp_path, [[FOREGROUND[0], *BACKGROUND[:2]], [FOREGROUND[1]]])
    rows = rows_of(where(file, Windows(size=SIZE, foreground_fraction=0.5)))
    assert [row["label"] for row in rows] == [5, 0, 0, 7]
    assert [row["name"] for row in rows] == [
        str(tmp_path / name) for name in ("a0.png#0", "a0.png#1", "a0.png#2", "a1.png#0")
    ]
    assert {row["error"] for row in rows} == {None}
    for row, (number, box) in zip(
        rows, [(0, (2, 3, 9, 12)), (0, (1, 1, 4, 4)), (0, (3, 3, 8, 8)), (1, (0, 0, 29, 19))], strict=True
    ):
        x1, y1, x2, y2 = box
        expected = cv2.resize(image_of(number)[y1 : y2 + 1, x1 : x2 + 1], (SIZE, SIZE))
        np.testing.assert_array_equal(pixels_of(row), expected.transpose(2, 0, 1))


def test_thresholds_and_what_lies_between_them(tmp_path: Path) -> None:
    file = made(
        tmp_path, [[(1, 0.7, 0, 0, 5, 5), (1, 0.5, 0, 0, 6, 6), (1, 0.3, 0, 0, 7, 7), (1, 0.29, 0, 0, 8, 8)]]
    )
    rule = Windows(size=SIZE, foreground_threshold=0.7, background_threshold=0.3, foreground_fraction=0.5)
    rows = rows_of(where(file, rule))
    # 0.7 in float32 is not below itself; 0.5 is neither; 0.3 is not below the threshold
    assert [row["label"] for row in rows] == [1, 0]


@pytest.mark.parametrize(
    ("fraction", "foreground", "background", "expected"),
    [
        (0.25, 4, 40, (4, 12)),
        (0.5, 4, 40, (4, 4)),
        (0.25, 4, 5, (4, 12)),
        (0.25, 1, 3, (1, 3)),
        (0.0, 4, 6, (0, 6)),
        (1.0, 4, 0, (4, 0)),
        (0.9, 3, 6, (3, 1)),
    ],
)
def test_the_share_of_foreground(
    tmp_path: Path, fraction: float, foreground: int, background: int, expected
) -> None:
    boxes = [(1, 0.9, at, 0, at + 3, 5) for at in range(foreground)]
    others = [(1, 0.1, at % 20, at // 20, at % 20 + 4, 9) for at in range(background)]
    file = made(tmp_path, [boxes[::2] + others[1::2], boxes[1::2] + others[::2]])
    rule = Windows(size=SIZE, foreground_fraction=fraction)
    rows = rows_of(where(file, rule))
    assert Counter(row["label"] > 0 for row in rows) == Counter({True: expected[0], False: expected[1]})
    # the same each time; no foreground twice, and no background more often than another by more than once
    assert rows == rows_of(where(file, rule))
    images = Counter((row["name"].partition("#")[0], row["image"]) for row in rows if row["label"] == 0)
    if fraction > 0 and expected[1] >= background > 0:
        assert len(images) == background
        assert max(images.values()) - min(images.values()) <= 1
    elif images:
        assert set(images.values()) == {1}


def test_a_partition_holds_whole_images(tmp_path: Path) -> None:
    boxes = [(1, 0.9, 0, 0, 5, 5)] * 300
    source = open_source(where(made(tmp_path, [boxes, boxes, boxes]), Windows(size=SIZE, foreground_fraction=1)))
    assert [len(part.images) for part in source.partitions] == [2, 1]
    assert source.schema.input.shape == (3, SIZE, SIZE)
    assert source.schema.input.dtype == "uint8"
    assert [file.name for file in source.files] == ["windows.txt", "a0.png", "a1.png", "a2.png"]


def as_caffe_does(image: np.ndarray, box: Box, rule: Windows) -> np.ndarray | None:
    """Step by step as window_data_layer.cpp, number by number; None where it would stop."""
    size, pad = rule.size, rule.context_pad
    rows, columns = image.shape[:2]
    x1, y1, x2, y2 = box.x1, box.y1, box.x2, box.y2
    width = height = size
    pad_w = pad_h = 0

    def c_round(number):
        return int(math.copysign(math.floor(abs(float(number)) + 0.5), number))

    if pad > 0 or rule.crop_mode == "square":
        scale = np.float32(size) / np.float32(size - 2 * pad)
        half_height, half_width = np.float32((y2 - y1 + 1) / 2), np.float32((x2 - x1 + 1) / 2)
        center_x, center_y = np.float32(x1) + half_width, np.float32(y1) + half_height
        if rule.crop_mode == "square":
            half_height = half_width = max(half_height, half_width)
        x1, x2 = c_round(center_x - half_width * scale), c_round(center_x + half_width * scale)
        y1, y2 = c_round(center_y - half_height * scale), c_round(center_y + half_height * scale)
        whole_height, whole_width = y2 - y1 + 1, x2 - x1 + 1
        pad_x1, pad_y1 = max(0, -x1), max(0, -y1)
        pad_x2, pad_y2 = max(0, x2 - columns + 1), max(0, y2 - rows + 1)
        x1, x2, y1, y2 = x1 + pad_x1, x2 - pad_x2, y1 + pad_y1, y2 - pad_y2
        scale_x, scale_y = np.float32(size) / np.float32(whole_width), np.float32(size) / np.float32(whole_height)
        width = c_round(np.float32(x2 - x1 + 1) * scale_x)
        height = c_round(np.float32(y2 - y1 + 1) * scale_y)
        pad_w, pad_h = c_round(np.float32(pad_x1) * scale_x), c_round(np.float32(pad_y1) * scale_y)
        height, width = min(height, size - pad_h), min(width, size - pad_w)
    if x1 < 0 or y1 < 0 or x2 >= columns or y2 >= rows or x2 < x1 or y2 < y1 or width < 1 or height < 1:
        return None
    made = np.zeros((size, size, 3), np.uint8) + np.array(rule.fill or (0, 0, 0), np.uint8)
    made[pad_h : pad_h + height, pad_w : pad_w + width] = cv2.resize(
        image[y1 : y2 + 1, x1 : x2 + 1], (width, height), interpolation=cv2.INTER_LINEAR
    )
    return made.transpose(2, 0, 1)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    corners=st.tuples(st.integers(-3, 32), st.integers(-3, 22), st.integers(-3, 32), st.integers(-3, 22)),
    size=st.integers(1, 24),
    pad=st.integers(0, 11),
    mode=st.sampled_from(["warp", "square"]),
)
def test_windows_are_cut_out_step_by_step_as_caffe_does(corners, size: int, pad: int, mode) -> None:
    rule = Windows(size=size, context_pad=min(pad, (size - 1) // 2), crop_mode=mode, fill=(10, 20, 30))
    box = Box(x1=corners[0], y1=corners[1], x2=corners[2], y2=corners[3], label=1)
    image = image_of(0)
    expected = as_caffe_does(image, box, rule)
    if expected is None:
        with pytest.raises(BadImage, match="does not lie in the image of 30 x 20 pixels"):
            cut_window(image, box, rule)
    else:
        np.testing.assert_array_equal(cut_window(image, box, rule), expected)


def test_a_window_at_the_corner_by_hand() -> None:
    """8 of 16 pixels are the window's own; a half of what lies around it lies outside."""
    image = np.full((20, 30, 3), 200, np.uint8)
    rule = Windows(size=16, context_pad=4, fill=(1, 2, 3))
    cut = cut_window(image, Box(x1=0, y1=0, x2=7, y2=7, label=1), rule)
    # the middle is at 4, the half 4 becomes 8: from -4 to 12, 17 pixels, of which 13 are there
    inside = round(13 * 16 / 17)
    outside = round(4 * 16 / 17)
    assert cut.shape == (3, 16, 16)
    assert (cut[:, outside:, outside:] == 200).all()
    assert inside + outside == 16
    assert cut[:, 0, 0].tolist() == [1, 2, 3]
    assert cut[:, outside - 1, 9].tolist() == [1, 2, 3]


def test_what_cannot_be_cut_is_damaged_and_the_rest_is_read(tmp_path: Path) -> None:
    file = made(
        tmp_path, [[(1, 0.9, 0, 0, 5, 5), (1, 0.9, 25, 0, 30, 5)], [(2, 0.9, 0, 0, 5, 5)], [(3, 0.9, 0, 0, 5, 5)]]
    )
    (tmp_path / "a1.png").write_bytes(b"no image")
    rows = rows_of(where(file, Windows(size=SIZE, foreground_fraction=1)))
    assert [row["label"] for row in rows] == [1, None, None, 3]
    assert "a0.png: the window 25, 0, 30, 5 does not lie in the image of 30 x 20" in rows[1]["error"]
    assert "a1.png: 8 bytes that begin with b'no image' are no image" in rows[2]["error"]


def test_where_paths_begin_and_what_is_not_there(tmp_path: Path) -> None:
    file = made(tmp_path / "images", [[FOREGROUND[0], BACKGROUND[0]]])
    moved = tmp_path / "lists" / "w.txt"
    moved.parent.mkdir()
    moved.write_text(file.read_text())
    assert len(rows_of(where(moved, root=str(tmp_path / "images")))) == 4
    with pytest.raises(DataError, match=r"w\.txt: entry 1 names .*a0\.png, which is no file"):
        open_source(where(moved))
    with pytest.raises(DataError, match=r"no such list of windows: correct data\.path"):
        open_source(where(tmp_path / "nothing.txt"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the list names no image"),
        ("0 a.png", "image 0 does not begin with #"),
        ("# x a.png", "image 0 has 'x' where its index should be, a whole number"),
        ("# 1 a.png 3 2 2 0", "image 0 has index 1; images are numbered from 0 on"),
        ("# 0 a.png 1 2 2 0", "image 0 has 1 channels; windows are cut out of images of 3"),
        ("# 0 a.png 3 2 2", "image 0 ends where the number of windows should be"),
        ("# 0 a.png 3 2 2 2 1 0.9 0 0 1 1", "image 0 ends where a label should be"),
        ("# 0 a.png 3 2 2 1 1 much 0 0 1 1", "image 0 has 'much' where an overlap should be, a number"),
        ("# 0 a.png 3 2 2 1 1 0.9 0 0 1 1.5", "image 0 has '1.5' where y2 should be"),
        ("# 0 a.png 3 2 2 1 0 0.9 0 0 1 1", "image 0 has a foreground window of label 0"),
        ("# 0 a.png 3 2 2 1 1 0.9 0 0 1 1", "no window is background, and .*fraction is 0.25"),
        ("# 0 a.png 3 2 2 1 1 0.1 0 0 1 1", "no window is foreground"),
        (f"# 0 a.png 3 2 2 {'9' * 5000}", "where the number of windows should be"),
    ],
)
def test_lists_at_fault(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    file = tmp_path / "w.txt"
    file.write_text(text)
    with pytest.raises(DataError, match=message):
        open_source(where(file))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 0}, "data.windows.size is 0"),
        ({"context_pad": 4}, "context_pad is 4; twice of it must be below data.windows.size, 8"),
        ({"context_pad": -1}, "context_pad is -1"),
        ({"foreground_fraction": 1.5}, "foreground_fraction is 1.5"),
        ({"fill": (1, 2)}, r"fill is \[1, 2\]; give three"),
        ({"fill": (1, 2, 256)}, "fill is"),
        ({"foreground_threshold": float("nan")}, "foreground_threshold is nan"),
    ],
)
def test_settings_at_fault(change, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(PLAIN, **change)


def test_the_source_needs_its_settings_and_no_other_takes_them(tmp_path: Path) -> None:
    held = {"validation_fraction": 0.5}
    with pytest.raises(ConfigError, match=r"data\.windows is not given; source windows needs it"):
        find_format(decode(Data, {"source": "windows", "path": "x", **held}))
    with pytest.raises(ConfigError, match=r"data\.windows is given; source image_list has images as they are"):
        find_format(decode(Data, {"source": "image_list", "path": "x", "windows": {"size": 8}, **held}))
    file = made(tmp_path, [[*FOREGROUND, *BACKGROUND]])
    data = decode(Data, {"source": "windows", "path": str(file), "windows": {"size": 8}, **held})
    assert find_format(data) is FORMATS["windows"]
    rows = open_sources(data).schema(data)
    assert rows is not None
    assert rows.input.shape == (3, 8, 8)
    # what is decoded here is in the order that is asked for
    first = open_sources(data).train.listed.partitions[0]
    assert first.order == "rgb"
