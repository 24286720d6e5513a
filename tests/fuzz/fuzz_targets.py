"""What is fuzzed: good files of every format, the parser of each, and what must hold of its answers.

To add a parser, add an entry to `TARGETS`.
"""

import io
import os
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from google.protobuf.message import DecodeError, Message
from PIL import Image

from sparknet.caffe.description.spec import NetSpec
from sparknet.caffe.description.state_rules import select
from sparknet.caffe.description.upgrade import upgrade_net, upgrade_solver
from sparknet.caffe.prototxt import format_text, parse_text
from sparknet.caffe.schema import Datum, NetParameter, SolverParameter
from sparknet.caffe.schema.strings import readable_strings
from sparknet.caffe.weights.blobs import array_of
from sparknet.caffe.weights.caffemodel import read_weights
from sparknet.caffe.weights.mean_image import read_mean
from sparknet.caffe.weights.written_form import describes
from sparknet.data.export.lmdb_writer import DatabaseWriter
from sparknet.data.rows.columns import ImageForm
from sparknet.data.rows.image_codec import decode, decode_into, size_of
from sparknet.data.sources import image_tar
from sparknet.data.sources.datum import write
from sparknet.data.sources.files import Location
from sparknet.data.sources.lmdb import Records, RowBatch, open_source, read
from sparknet.data.storage.place import LOCAL
from sparknet.errors import BadImage, DataError, NetError

CASES = Path(__file__).parents[1] / "caffe" / "reference"
LARGEST = 1 << 16  # bytes of an input

NET_SNIPPETS = [
    # spellings
    b"""name: 'a' "b" # comment
    input: 'data' input_shape: < dim: [1, 2,3] >
    input: "l"; input_shape { dim: 0x1F },""",
    b"layer [ { name: 'x' type: 'ReLU' }, < name: 'y' > ] state { phase: TEST level: -2147483648 }",
    b"""force_backward: t layer { name: '\\101\\x41\\u00e9\\U0001F600\\n\\'' phase: 1
    loss_weight: [1e-1, .5, 1., -inf, nan, 2f, 1e400] }""",
    # forks
    b"layer { type: 'Pool' pooling_param { pool: AVE ceil_mode: false kernel_size: 4294967295 engine: MKL2017 } }",
    b"""default_forward_type: FLOAT16
    layer { forward_math: [1, { a: 'x' 'y' b < > }] type: 'Clip' clip_param { min: 0 max: 1 } }""",
    # blobs
    b"""layer { blobs { shape { dim: 2 } data: 1 data: -2.5e-3 diff: [0, 1] double_data: 1e300 }
    blobs { num: 1 channels: 2 } }""",
    # older notations
    b"""input: 'a' input_dim: [1, 2, 3, 4]
    layers { type: CONVOLUTION name: 'c' bottom: 'a' top: 'c' param: 'w' blob_share_mode: PERMISSIVE
    blobs_lr: 1 blobs_lr: 2 weight_decay: 1 include { stage: 's' not_stage: 'n' min_level: -1 }
    convolution_param { kernel_size: 3 weight_filler { type: 'xavier' variance_norm: AVERAGE } } }""",
    b"""input: 'd' input_dim: 1 input_dim: 3 input_dim: 8 input_dim: 8
    layers { layer { name: 'p' type: 'padding' pad: 2 } bottom: 'd' top: 'p' }
    layers { layer { name: 'c' type: 'conv' num_output: 3 kernelsize: 5 blobs_lr: 1. } bottom: 'p' top: 'c' }
    layers { layer { name: 'i' type: 'images' source: 'x' batchsize: 2 meanfile: 'm' cropsize: 3 mirror: true
    scale: 0.5 shuffle_images: 1 new_height: 4 } top: 'i' }""",
    b"layers { type: DATA name: 'd' top: 'd' data_param { source: 's' scale: 0.1 mean_file: 'm' crop_size: 2 } }",
    b"layer { type: 'BatchNorm' param { lr_mult: 1 } param { } param { decay_mult: 2 } exclude { phase: TRAIN } }",
]
SOLVER_SNIPPETS = [
    b"""net: "n.prototxt" test_iter: [1, 2] base_lr: 1e-2 lr_policy: 'step'
    stepvalue: 1, stepvalue: 2; random_seed: -1""",
    b"net_param { layer { name: 'a' } } test_net_param [ { }, { name: 'x' } ] solver_mode: GPU snapshot_format: 0",
    b"""solver_type: ADAGRAD train_state { stage: 'a' stage: 'b' } test_state { phase: TEST }
    solver_data_type: FLOAT16""",
    b"type: 'Adam' momentum: 0.9 momentum2: .999 delta: 1e-8 clip_gradients: -1 snapshot_after_train: False",
]
BLOBS = [  # of Caffe's kinds: legacy axes, today's shape, numbers that are not packed, double precision
    b"\x08\1\x10\1\x18\2\x20\1\x2a\x08" + bytes(8),
    b"\x2a\x08" + bytes(8) + b"\x3a\5\x0a\3\1\2\1",
    b"\x08\1\x10\1\x18\2\x20\1" + (b"\x2d" + bytes(4)) * 2,
    b"\x3a\5\x0a\3\1\2\1\x42\x10" + bytes(16),
    b"\x2a\4" + bytes(4) + b"\x2a\4" + bytes(4) + b"\x32\x08" + bytes(8) + b"\x3a\5\x0a\3\2\1\1",
]
BLOB_NETS = [
    *(b"\x0a\1n\xa2\x06" + bytes([len(blob) + 5]) + b"\x0a\1l\x3a" + bytes([len(blob)]) + blob for blob in BLOBS),
    *(b"\x12" + bytes([len(blob) + 5]) + b"\x22\1l\x32" + bytes([len(blob)]) + blob for blob in BLOBS),
    *(
        b"\x12"
        + bytes([len(blob) + 8])
        + b"\x0a"
        + bytes([len(blob) + 6])
        + b"\x0a\1l\x92\3"
        + bytes([len(blob)])
        + blob
        for blob in BLOBS
    ),
]


@dataclass(frozen=True, kw_only=True)
class Target:
    """A parser, good input for it, and what it may raise."""

    corpus: Callable[[], Sequence[bytes]]
    run: Callable[[bytes], object]
    allowed: tuple[type[BaseException], ...]
    share: float = 1.0
    """How many of the inputs it gets, in proportion to the others."""


def files(pattern: str, largest: int = LARGEST) -> list[bytes]:
    """The reference files that match a pattern, but for those above `largest` bytes."""
    return [path.read_bytes() for path in sorted(CASES.rglob(pattern)) if path.stat().st_size <= largest]


def run_net_text(content: bytes) -> None:
    net = parse_text(content.decode(errors="surrogateescape"), NetParameter)
    check_round_trip(net.message)
    check_net(net.message)


def run_solver_text(content: bytes) -> None:
    solver = parse_text(content.decode(errors="surrogateescape"), SolverParameter).message
    check_round_trip(solver)
    assert not upgrade_solver(solver).HasField("solver_type")


def run_net_binary(content: bytes) -> None:
    net = NetParameter.FromString(content)
    check_net(net)
    check_round_trip(net)


def run_weights(content: bytes) -> None:
    """Weights are what protobuf says they are, which reads them by another way."""
    weights = read_weights(in_memory(content))
    assert weights.description is not None
    describes(weights.description, NetSpec(weights.description))
    with suppress(DecodeError, NetError):
        net = readable_strings(NetParameter.FromString(content))
        older = [(layer.layer if layer.HasField("layer") else layer) for layer in net.layers]
        expected = {layer.name: [array_of(blob) for blob in layer.blobs] for layer in (*net.layer, *older)}
        for name, arrays in expected.items():
            if arrays:
                assert [array.tobytes() for array in weights.blobs[name].values()] == [a.tobytes() for a in arrays]


def run_mean(content: bytes) -> None:
    mean = read_mean(in_memory(content))
    assert mean.ndim == 3
    assert 0 < mean.nbytes <= len(content)


DATUM_FORMS = [
    Records(dtype="uint8", shape=(3, 2, 2), encoded=False),
    Records(dtype="float32", shape=(3, 2, 2), encoded=False),
    Records(dtype="uint8", shape=(), encoded=True),
]
PIXELS, FLOATS = bytes(range(12)), np.arange(12, dtype=np.float32)
DATUMS = [
    write(shape=(3, 2, 2), data=PIXELS, label=7),
    write(shape=(3, 2, 2), data=PIXELS, label=999, encoded=False),
    write(shape=(3, 2, 2), data=PIXELS, label=-1, float_data=FLOATS),
    write(shape=(3, 2, 2), float_data=FLOATS, label=3),
    write(data=b"\xff\xd8\xff" + PIXELS, label=0, encoded=True),
    b"\x08\3\x10\2\x18\2\x32\x30" + FLOATS.tobytes() + b"\x7b\x08\1\x7c",
]


def run_datum(content: bytes) -> None:
    """A record is what protobuf says it is, and in a batch of any kind it is a row or an error."""
    for form in DATUM_FORMS:
        batch = RowBatch(form, where="fuzz")
        batch.append(b"key", memoryview(content), 0)
        rows = batch.take()
        rows.validate(full=True)
        (row,) = rows.to_pylist()
        assert (row["image"] is None) == (row["label"] is None) == (row["error"] is not None)
        with suppress(DecodeError):
            expected = Datum.FromString(content)
            if row["label"] is not None:
                values = np.array(row["image"], np.float32) if form.kind == "floats" else row["image"]
                theirs = np.array(expected.float_data, np.float32) if form.kind == "floats" else expected.data
                assert (bytes(values), row["label"]) == (bytes(theirs), expected.label)
            continue
        assert row["error"] is not None  # protobuf refuses it


def databases() -> list[bytes]:
    """Small database files: Caffe's, and denser ones of two to four levels and of values in pages of their own."""
    found = files("data.mdb")
    for rows, size, name in ((1, 12, ""), (40, 12, "n"), (500, 12, "name"), (80, 12, "x" * 450), (9, 5000, "")):
        with tempfile.TemporaryDirectory() as folder:
            with DatabaseWriter(Path(folder) / "db") as writer:
                for row in range(rows):
                    writer.append(write(shape=(1, 1, size), data=bytes(size), label=row % 10), name)
            found.append((Path(folder) / "db" / "data.mdb").read_bytes())
    return found


def run_database(content: bytes) -> None:
    """A damaged file is refused or its rows are whole; nothing is read twice or beyond what the file says."""
    path = in_memory(content)
    rows = 0
    for unit in open_source(Location(path=str(path))).partitions:
        for batch in read(unit, LOCAL):
            batch.validate(full=True)
            rows += batch.num_rows
    assert 0 < rows <= len(content) // 8


def image_files() -> list[bytes]:
    """Small images of every format and of the kinds that decoders treat apart."""
    pixels = np.random.default_rng(0).integers(0, 256, (13, 17, 3), np.uint8)
    photo, turned = Image.fromarray(pixels).resize((34, 26)), Image.Exif()
    turned[0x0112] = 6
    deep = Image.fromarray(pixels[..., 0].astype(np.uint16) << 8)
    two = {"save_all": True, "append_images": [photo.rotate(90)]}
    return [
        *(encoded(photo.convert(mode), "JPEG") for mode in ("RGB", "L", "CMYK")),
        encoded(photo, "JPEG", progressive=True, exif=turned),
        *(encoded(photo.convert(mode), "PNG") for mode in ("RGB", "RGBA", "LA", "1")),
        encoded(photo.convert("P"), "PNG", transparency=3, exif=turned),
        *(encoded(deep, kind) for kind in ("PNG", "TIFF")),
        *(encoded(photo, "GIF", **choice) for choice in ({}, two)),
        *(encoded(photo.convert(mode), "BMP") for mode in ("RGB", "P")),
        *(encoded(photo, "WebP", **choice) for choice in ({}, {"lossless": True}, two)),
        *(encoded(photo, "TIFF", compression=name) for name in ("raw", "tiff_lzw", "jpeg", "tiff_deflate")),
    ]


def encoded(image: Image.Image, kind: str, **choices: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **choices)
    return file.getvalue()


def with_checksums(content: bytes) -> bytes:
    """Correct a PNG's checksums, without which a decoder looks no further."""
    fixed, at = bytearray(content), 8
    while content.startswith(b"\x89PNG") and at + 12 <= len(content):
        end = at + 8 + int.from_bytes(content[at : at + 4])
        fixed[end : end + 4] = zlib.crc32(content[at + 4 : end]).to_bytes(4)
        at = end + 4
    return bytes(fixed[: len(content)])


def run_image(content: bytes) -> None:
    """An image is as large as its header says, and its planes are the pixels."""
    content = with_checksums(content)
    size = size_of(content)
    image = decode(content, channels=3, order="rgb")
    assert image.shape == (*size, 3)
    if image.size > 1 << 24:
        return  # the rest would take seconds
    planes = np.empty((3, *size), np.uint8)
    decode_into(planes, content, form=ImageForm())
    assert (planes == image.transpose(2, 0, 1)).all()
    decode_into(np.empty((1, 8, 9), np.uint8), content, form=ImageForm(resize_mode="shorter_side"))


TAR_NAMES = ["0.jpg", "n1/1.JPEG", "2", "d/" * 60 + "3.png", "x" * 120, "é.jpg", "._4.jpg", "read.txt"]


def archives() -> list[bytes]:
    """Archives of every kind, whole and put together, one within another and with a sparse file."""
    found = list[bytes]()
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        names = [name[:99] if form == tarfile.USTAR_FORMAT and "/" not in name else name for name in TAR_NAMES]
        members = [(name, b"\xff\xd8\xff" + bytes(200 * at)) for at, name in enumerate(names)]
        found.append(tar_of(members, form))
        found.append(tar_of([("inner.tar", found[-1]), *members[:2]], form))
    sparse = bytearray(found[2])
    sparse[156:157], sparse[482] = b"S", 1
    return [*found, found[0] + found[4], bytes(sparse), b"\0" * 1024, found[2][:700]]


def tar_of(members: Sequence[tuple[str, bytes]], form: int) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        return file.getvalue()[: tar.offset + 1024]


def with_sums(content: bytes) -> bytes:
    """Correct the checksums of tar headers, without which nothing else of them is read."""
    fixed = bytearray(content)
    for at in range(0, len(content) - 511, 512):
        if fixed[at + 257 : at + 262] == b"ustar":
            fixed[at + 148 : at + 156] = b" " * 8
            fixed[at + 148 : at + 156] = b"%06o\0 " % sum(fixed[at : at + 512])
    return bytes(fixed)


@cache
def tar_labels() -> str:
    """Return the path of a label file for every second name."""
    file = os.memfd_create("labels")
    os.write(file, "".join(f"{name} {at}\n" for at, name in enumerate(TAR_NAMES[::2])).encode())
    return f"/proc/self/fd/{file}"


def run_archive(content: bytes) -> None:
    """Whatever an archive is, its rows are whole or say where they are damaged, and are the same in small units."""
    for version in (content, with_sums(content)):
        rows = tar_rows(version)
        assert len(rows) <= len(content) // 512 + 1
        for row in rows:
            assert (row["image"] is None) == (row["label"] is None) == (row["error"] is not None)
            assert row["error"] is None or "at offset " in row["error"]
        with (
            mock.patch.object(image_tar, "_PARTITION_BYTES", 1),
            mock.patch.object(image_tar, "_LOCAL_READ_BYTES", 700),
        ):
            parts = tar_rows(version)
        assert [without_reason(row) for row in parts] == [without_reason(row) for row in rows]


def tar_rows(content: bytes) -> list[dict[str, Any]]:
    where = Location(path=in_memory(content), labels=tar_labels())
    batches = [batch for unit in image_tar.open_source(where).partitions for batch in image_tar.read(unit)]
    for batch in batches:
        batch.validate(full=True)
    return [row for batch in batches for row in batch.to_pylist()]


def without_reason(row: dict[str, Any]) -> dict[str, Any]:
    """Leave out why a header is none: it may go on beyond the unit, and be no better for it."""
    return {**row, "error": row["error"] and row["error"].partition("without a header: ")[0]}


@cache
def memory_file() -> int:
    return os.memfd_create("fuzz")


def in_memory(content: bytes) -> str:
    """Return the path of a file that holds this and lies on no disk; one at a time."""
    os.truncate(memory_file(), 0)
    os.pwrite(memory_file(), content, 0)
    return f"/proc/self/fd/{memory_file()}"


def check_net(net: NetParameter) -> None:
    """What must hold of every net that parses: its upgrade is modern, and upgrading again changes nothing."""
    upgrade = upgrade_net(net)
    assert not upgrade.net.layers
    assert not upgrade.net.input
    assert len(upgrade.origins) == len(upgrade.net.layer)
    again = upgrade_net(upgrade.net)
    assert again.net.SerializeToString() == upgrade.net.SerializeToString()
    select(upgrade.net, phase="TRAIN")


def check_round_trip(message: Message) -> None:
    """What must hold of every message: its text is a message of the same text."""
    text = format_text(message)
    assert format_text(parse_text(text, type(message)).message) == text


TARGETS = {
    "net_text": Target(
        corpus=lambda: files("net.prototxt") + NET_SNIPPETS, run=run_net_text, allowed=(NetError,), share=2.0
    ),
    "solver_text": Target(
        corpus=lambda: files("solver.prototxt") + SOLVER_SNIPPETS, run=run_solver_text, allowed=(NetError,)
    ),
    "net_binary": Target(
        corpus=lambda: [
            *files("*.caffemodel", largest=1 << 14),
            *(parse_text(text.decode(), NetParameter).message.SerializeToString() for text in NET_SNIPPETS),
        ],
        run=run_net_binary,
        allowed=(NetError, DecodeError),
        share=0.5,
    ),
    "weights": Target(
        corpus=lambda: [*files("*.caffemodel", largest=1 << 14), *BLOB_NETS], run=run_weights, allowed=(NetError,)
    ),
    "mean_image": Target(
        corpus=lambda: files("mean.binaryproto") + BLOBS, run=run_mean, allowed=(NetError,), share=0.5
    ),
    "archive": Target(corpus=archives, run=run_archive, allowed=(DataError,), share=0.5),
    "datum": Target(corpus=lambda: DATUMS, run=run_datum, allowed=(DataError,)),
    "database": Target(corpus=databases, run=run_database, allowed=(DataError,), share=0.5),
    "image": Target(corpus=image_files, run=run_image, allowed=(BadImage,)),
}
