"""A format of its own: text files of lines `LABEL HEX`, the pixels of an 8x8 image in hexadecimal."""

from dataclasses import replace

import numpy as np

from sparknet.data.rows.columns import LABEL, Column
from sparknet.data.rows.row_schema import RowSchema
from sparknet.data.sources.files import RowRange, find_files
from sparknet.data.sources.image_batches import pixel_batch
from sparknet.data.sources.source import Source

SCHEMA = RowSchema(
    inputs=(Column(name="image", dtype="uint8", shape=(1, 8, 8)),), targets=(replace(LABEL, classes=10),)
)


def open_source(where):
    files = find_files(where.path, in_directory=["*.hex"], what="hex files", storage=where.storage)
    lines = {file.uri: where.storage.place(file.uri).read().count(b"\n") for file in files}
    return Source(
        schema=SCHEMA,
        files=files,
        cut=lambda: [RowRange(path=uri, start=0, stop=count) for uri, count in lines.items()],
    )


def read(partition, storage):
    lines = storage.place(partition.path).read().decode().splitlines()[partition.start : partition.stop]
    labels, pixels = zip(*(line.split() for line in lines), strict=True)
    yield pixel_batch(
        np.stack([np.frombuffer(bytes.fromhex(text), np.uint8) for text in pixels]), np.array(labels, np.int64)
    )


def write(path, images, labels):
    """Rows of uint8 [n, 1, 8, 8] and int64 [n]."""
    path.write_text(
        "".join(f"{label} {image.tobytes().hex()}\n" for image, label in zip(images, labels, strict=True))
    )
