"""A small ImageNet in the form of the published archives, made of patches of scikit-learn's sample photographs, and
its conversion in this process."""

import dataclasses
import io
import tarfile
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
from PIL import Image
from sklearn.datasets import load_sample_images

from sparknet.data.export.imagenet_chunks import write_chunk
from sparknet.data.export.imagenet_job import begin, plan_work
from sparknet.data.export.imagenet_pieces import read_piece
from sparknet.data.export.imagenet_plan import Settings
from sparknet.data.storage.place import LOCAL

SETTINGS = Settings(width=64, height=64, chunks=4, seed=3)


@dataclass(kw_only=True)
class Archive:
    """What was made, and what a conversion must find in it."""

    tar: Path
    labels: Path
    """Directory of train.txt and val.txt."""
    images: dict[str, bytes] = field(default_factory=dict)
    """File by base name, without the corrupt and those without a label."""
    label_of: dict[str, int] = field(default_factory=dict)
    """Of every line of the label file, by base name."""
    corrupt: set[str] = field(default_factory=set)
    missing: set[str] = field(default_factory=set)
    unlabelled: set[str] = field(default_factory=set)


class Patches:
    """Draws patches of photographs, each other than all before."""

    def __init__(self, seed=0):
        self._photographs = load_sample_images().images
        self._random = np.random.default_rng(seed)

    def draw(self, height, width):
        photograph = self._photographs[self._random.integers(len(self._photographs))]
        top = self._random.integers(photograph.shape[0] - height)
        left = self._random.integers(photograph.shape[1] - width)
        return np.ascontiguousarray(photograph[top : top + height, left : left + width])

    def size(self):
        return int(self._random.integers(70, 90)), int(self._random.integers(86, 106))


def jpeg(pixels, quality=85):
    return simplejpeg.encode_jpeg(pixels, quality, "RGB", "420")


def unusual(patches, kind):
    """An image file of a kind that ImageNet has a few of."""
    pixels = patches.draw(*patches.size())
    buffer = io.BytesIO()
    if kind == "png":
        return cv2.imencode(".png", pixels[..., ::-1])[1].tobytes()
    if kind == "grey":
        Image.fromarray(pixels).convert("L").save(buffer, "JPEG")
    elif kind == "cmyk":
        Image.fromarray(pixels).convert("CMYK").save(buffer, "JPEG")
    elif kind == "fitting":  # a JPEG of the size that the tests ask for
        return jpeg(patches.draw(64, 64))
    elif kind == "fitting grey":
        Image.fromarray(patches.draw(64, 64)).convert("L").save(buffer, "JPEG")
    elif kind == "fitting png":
        return cv2.imencode(".png", patches.draw(64, 64)[..., ::-1])[1].tobytes()
    return buffer.getvalue()


KINDS = ("png", "grey", "cmyk", "fitting", "fitting grey", "fitting png")
"""Kinds of image; all files end in .JPEG, as in the original."""


def make_train(directory: Path, *, classes=50, per_class=100, oddities=True) -> Archive:
    """A tar of tars. With oddities: an image of each unusual kind, three corrupt, one unlabelled, one missing."""
    made = Archive(tar=directory / "ILSVRC2012_img_train.tar", labels=directory / "labels")
    patches, lines = Patches(), []
    made.labels.mkdir(parents=True, exist_ok=True)
    with tarfile.open(made.tar, "w") as outer:
        for label in range(classes):
            synset = f"n{1440764 + 13 * label:08}"
            files = {
                f"{synset}_{number * 7 + 1}.JPEG": jpeg(patches.draw(*patches.size()))
                for number in range(per_class)
            }
            for name in files:
                lines.append((f"{synset}/{name}", label))
            if oddities:
                _make_odd(made, patches, label, synset, files, lines)
            made.images |= {
                name: data for name, data in files.items() if name not in made.corrupt | made.unlabelled
            }
            add(outer, f"{synset}.tar", flat_tar(files))
    _write_labels(made, "train.txt", lines)
    return made


def _make_odd(made, patches, label, synset, files, lines):
    names = list(files)
    if label < len(KINDS):
        files[names[label]] = unusual(patches, KINDS[label])
    if label == 1:
        files[names[-1]] = files[names[-1]][:700]  # cut short
    if label == 2:
        files[names[-2]] = b"<html>404 Not Found</html>"
    if label == 3:
        files[names[-3]] = b""
    made.corrupt |= {names[-label]} if label in (1, 2, 3) else set()
    if label == 4:
        made.unlabelled.add(f"{synset}_stray.JPEG")
        files[f"{synset}_stray.JPEG"] = jpeg(patches.draw(70, 70))
    if label == 5:
        made.missing.add(f"{synset}_gone.JPEG")
        lines.append((f"{synset}/{synset}_gone.JPEG", label))


def make_val(directory: Path, *, images=500, classes=50) -> Archive:
    """A flat tar."""
    made = Archive(tar=directory / "ILSVRC2012_img_val.tar", labels=directory / "labels")
    made.labels.mkdir(parents=True, exist_ok=True)
    patches = Patches(1)
    for number in range(1, images + 1):
        made.images[f"ILSVRC2012_val_{number:08}.JPEG"] = jpeg(patches.draw(*patches.size()))
    made.tar.write_bytes(flat_tar(made.images))
    _write_labels(made, "val.txt", [(name, i * 31 % classes) for i, name in enumerate(made.images)])
    return made


def flat_tar(files):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in files.items():
            add(tar, name, data)
    return buffer.getvalue()


def add(tar, name, data):
    header = tarfile.TarInfo(name)
    header.size = len(data)
    header.mtime = 1_340_000_000
    tar.addfile(header, io.BytesIO(data))


def _write_labels(made, name, lines):
    (made.labels / name).write_text("".join(f"{path} {label}\n" for path, label in lines))
    made.label_of |= {path.rpartition("/")[2]: label for path, label in lines}


def work_for(archive, split, destination, *, tar=None, labels=None, **settings):
    return plan_work(
        split,
        dataclasses.replace(SETTINGS, **settings),
        tar=LOCAL.place(str(tar or archive.tar)),
        labels=LOCAL.place(str(labels or archive.labels / f"{split}.txt")),
        destination=LOCAL.place(str(destination)),
    )


def rows_of(work, wanted):
    """The rows of all pieces that go into the wanted chunks."""
    return [row for piece in work.pieces for row in read_piece(work, piece, wanted)]


def make(work, chunks=None):
    """What the Spark job does, in this process."""
    wanted = frozenset(work.open_chunks if chunks is None else chunks)
    begin(work)
    rows = sorted(rows_of(work, wanted), key=lambda row: (row.place, row.offset))
    return [write_chunk(work, chunk, [row for row in rows if row.chunk == chunk]) for chunk in sorted(wanted)]
