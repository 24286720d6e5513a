"""Writes the rows that the examples train on into `data/`: some seconds, nothing is downloaded.

python make_data.py

The numbers are real where that is possible without a download: scikit-learn brings 442 patients with diabetes and
1,797 handwritten digits.
"""

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from nets import Digits
from pyarrow import parquet
from safetensors.torch import save_file
from sklearn.datasets import load_diabetes, load_digits
from torch.nn import functional

from sparknet.data.export.lmdb_writer import DatabaseWriter
from sparknet.data.sources import datum

TOPICS = {
    "weather": ["rain", "snow", "cloud", "storm", "sun", "wind", "frost", "fog"],
    "sport": ["goal", "match", "team", "ball", "coach", "win", "race", "score"],
    "music": ["song", "drum", "choir", "band", "tune", "note", "opera", "waltz"],
}
OTHERS = ["the", "a", "of", "to", "and", "it", "was", "with", "for", "on", "that", "this"]
NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
WORDS = ["<pad>", *OTHERS, *(word for words in TOPICS.values() for word in words)]


def main() -> None:
    """Write everything."""
    data = Path("data")
    data.mkdir(exist_ok=True)
    write_patients(data / "diabetes.parquet")
    write_sentences(data / "sentences.parquet")
    write_digits(data / "digits.parquet")
    write_captions(data / "captions.parquet")
    write_backbone(data / "backbone.safetensors")
    for split, rows in (("train", slice(0, 1440)), ("test", slice(1440, None))):
        write_databases(data, split, rows)
    print(f"wrote {', '.join(sorted(path.name for path in data.iterdir()))} in {data.resolve()}")


def write_patients(path: Path) -> None:
    """Age, body mass index and blood pressure of 442 patients, and how their diabetes went on."""
    found: Any = load_diabetes(scaled=False)
    columns = {name: found.data[:, at] for at, name in ((0, "age"), (2, "bmi"), (3, "pressure"))}
    _write(path, {**columns, "progression": (found.target - found.target.mean()) / found.target.std()})


def write_sentences(path: Path) -> None:
    """Sentences of 4 to 20 words as numbers, 0 of which is kept for padding; the topic is a word."""
    draw = random.Random(0)
    tokens, topics = [], []
    for _ in range(2000):
        topic = draw.choice(list(TOPICS))
        words = [draw.choice(OTHERS) for _ in range(draw.randint(2, 14))]
        # Most topical words are of the topic; some are of any.
        words += [draw.choice(TOPICS[topic]) for _ in range(draw.randint(2, 4))]
        words += [draw.choice(TOPICS[draw.choice(list(TOPICS))]) for _ in range(draw.randint(0, 2))]
        draw.shuffle(words)
        tokens.append([WORDS.index(word) for word in words])
        topics.append(topic)
    _write(path, {"tokens": tokens, "topic": topics})


def write_digits(path: Path) -> None:
    """Images [1, 8, 8] of 0..1, their digit, their ink, and what a doubtful reader would say of them."""
    images, digits = _digits()
    # A tenth of the belief goes to the other digits, more of it to the neighbours by number.
    apart = np.abs(np.arange(10)[:, None] - digits)
    doubt = np.exp(-apart.T.astype(np.float64)) * (apart.T > 0)
    soft = 0.1 * doubt / doubt.sum(1, keepdims=True)
    soft[np.arange(len(digits)), digits] = 0.9
    ink = images.mean((1, 2, 3))
    _write(
        path,
        {
            "image": images.tolist(),
            "digit": digits,
            "ink": (ink - ink.mean()) / ink.std(),
            "belief": soft.astype(np.float32).tolist(),
        },
    )


def write_captions(path: Path) -> None:
    """Images [1, 8, 8] of 0..1 and the names of their digits, as the letters to be told and those before each."""
    images, digits = _digits()
    # a is 1: 0 begins a name, and ends it
    letters = [[ord(letter) - ord("a") + 1 for letter in name] for name in NAMES]
    told = [(name + [0] * 6)[:6] for name in letters]
    before = [([0, *name] + [0] * 6)[:6] for name in letters]
    _write(
        path,
        {
            "image": images.tolist(),
            "before": [before[digit] for digit in digits],
            "letters": [told[digit] for digit in digits],
        },
    )


def write_backbone(path: Path) -> None:
    """A backbone that has seen the digits 0 to 4, under names of another house."""
    images, digits = _digits()
    few = digits < 5
    torch.manual_seed(0)
    net = Digits()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    inputs, labels = torch.from_numpy(images[few]), torch.from_numpy(digits[few])
    for _ in range(40):
        optimizer.zero_grad()
        functional.cross_entropy(net(inputs), labels).backward()
        optimizer.step()
    save_file({f"encoder.{name}": tensor for name, tensor in net.backbone.state_dict().items()}, path)


def write_databases(data: Path, split: str, rows: slice) -> None:
    """Two LMDBs in step: the images, and for each where its ink is, two numbers."""
    images, digits = (values[rows] for values in _digits())
    at = np.arange(8, dtype=np.float32) / 3.5 - 1
    ink = images[:, 0] / images.sum((1, 2, 3))[:, None, None]
    centres = np.stack([(ink * at[:, None]).sum((1, 2)), (ink * at).sum((1, 2))], axis=1)
    for name in ("images", "centres"):
        directory = data / f"{split}_{name}_lmdb"
        if directory.exists():
            continue
        with DatabaseWriter(directory) as writer:
            for image, digit, centre in zip(images, digits.tolist(), centres, strict=True):
                if name == "images":
                    pixels = (16 * image).astype(np.uint8)
                    writer.append(datum.write(shape=(1, 8, 8), data=pixels.tobytes(), label=digit, encoded=False))
                else:
                    floats = centre.astype(np.float32)
                    writer.append(datum.write(shape=(2, 1, 1), float_data=floats, label=digit, encoded=False))


def _digits() -> tuple[np.ndarray, np.ndarray]:
    """Images float32 [1797, 1, 8, 8], 0..1, and digits int64 [1797]."""
    found: Any = load_digits()
    return (found.images[:, None] / 16).astype(np.float32), found.target.astype(np.int64)


def _write(path: Path, columns: Mapping[str, Any]) -> None:
    parquet.write_table(pa.table(dict(columns)), path)


if __name__ == "__main__":
    main()
