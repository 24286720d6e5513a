"""Makes encoded images, and tables of them, from known pixels."""

from pathlib import Path

import cv2
import numpy as np

from formats import random_rows
from sparknet.data.rows.columns import Column, ImageForm
from sparknet.data.rows.ragged import Cells
from sparknet.data.shards.shard_table import Shard, ShardTable
from sparknet.data.shards.shard_writer import ShardWriter


def png(pixels):
    """A PNG of uint8 [channels, height, width], RGB or grey: it decodes to just these pixels."""
    image = pixels.transpose(1, 2, 0)
    if len(pixels) == 3:
        image = image[..., ::-1]
    done, data = cv2.imencode(".png", np.ascontiguousarray(image))
    assert done
    return data.tobytes()


def jpeg(pixels, *, quality=95):
    """A JPEG of about the pixels uint8 [3, height, width], RGB."""
    image = np.ascontiguousarray(pixels.transpose(1, 2, 0)[..., ::-1])
    done, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert done
    return data.tobytes()


def cells_of(files):
    """Files, one after the other."""
    edges = np.cumsum([0, *map(len, files)], dtype=np.int64)
    return Cells(data=np.frombuffer(b"".join(files), np.uint8), edges=edges)


def encoded_columns(shape, form=None):
    """An input column `image` of encoded images and a label column `label`."""
    image = Column(name="image", dtype="uint8", shape=shape, image=form or ImageForm())
    return (image, Column(name="label", dtype="int64", shape=()))


def encoded_table(directory, shard_rows, *, shape=(3, 2, 3), seed=0, threads=1):
    """Write shards of PNGs; gives the table and its rows as plain arrays."""
    images, labels = random_rows(sum(shard_rows), shape, seed=seed)
    shards, at = [], 0
    for number, rows in enumerate(shard_rows):
        part = slice(at, at + rows)
        columns = encoded_columns(shape)
        writer = ShardWriter(Path(directory), prefix=f"e{number}", columns=columns, shard_bytes=1 << 20)
        files = cells_of([png(image) for image in images[part]])
        writer.append({"image": images[part], "label": labels[part]}, {"image": files})
        shards += [Shard(path=done.name, rows=done.statistics.rows) for done in writer.close()]
        at += rows
    return ShardTable(Path(directory), shards, encoded_columns(shape), threads=threads), images, labels
