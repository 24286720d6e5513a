"""Our own safetensors: what the library reads, read back equal, refused when damaged, and never in the way of
threads."""

import json
import threading
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from sparknet.errors import CheckpointError
from sparknet.training.run_files.tensor_bytes import (
    TensorFile,
    dump_tensors,
    empty_bytes,
    load_tensors,
    read_bytes,
)

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
]
TENSORS = {
    **{f"of {dtype}": (torch.arange(7) % 3).to(dtype) for dtype in DTYPES},
    "scalar": torch.tensor(2.5),
    "nothing": torch.empty(0, 3),
    "turned": torch.arange(6.0).view(2, 3).T,
    "last": torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
    "ünï/code": torch.ones(1, requires_grad=True),
}


def same(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor.detach()), name


def test_the_library_reads_what_we_write_and_we_what_it_writes():
    data = dump_tensors(TENSORS)
    same(load(bytes(data)), TENSORS)
    same(load_tensors(data), TENSORS)
    same(load_tensors(save({name: tensor.detach().contiguous() for name, tensor in TENSORS.items()})), TENSORS)


def test_what_stands_before_leaves_all_aligned():
    data = dump_tensors(TENSORS, before=b"a line\n")
    assert bytes(data[:8]) == b"a line\n "
    same(load_tensors(data[8:]), TENSORS)


def test_equal_tensors_are_equal_bytes_whatever_their_order():
    turned = dict(reversed(TENSORS.items()))
    assert bytes(dump_tensors(TENSORS)) == bytes(dump_tensors(turned))


@pytest.mark.parametrize("most_bytes", [1, 7, 64, 1000, 1 << 20])
def test_in_pieces_it_is_the_same_file(most_bytes):
    file, whole = TensorFile(TENSORS, before=b"a line\n"), bytes(dump_tensors(TENSORS, before=b"a line\n"))
    pieces = [bytes(piece) for piece in file.pieces(most_bytes)]
    assert b"".join(pieces) == whole
    assert len(file) == len(whole)
    assert {len(piece) for piece in pieces[:-1]} <= {most_bytes}
    assert len(pieces[-1]) <= most_bytes


def test_one_piece_of_memory_is_held_beside_the_tensors():
    places = {np.frombuffer(piece, np.uint8).ctypes.data for piece in TensorFile(TENSORS).pieces(50)}
    assert len(places) == 1


def test_the_tensors_are_read_when_the_pieces_are_asked_for():
    tensor = torch.zeros(4)
    file = TensorFile({"x": tensor})
    tensor.fill_(3.0)
    assert load_tensors(file.whole())["x"].tolist() == [3.0] * 4


def test_complex_numbers_and_their_conjugates():
    numbers = torch.tensor([1 + 2j, 3 - 1j])
    tensors = {"plain": numbers, "conjugate": numbers.conj(), "negative": numbers.conj().imag}
    same(load_tensors(dump_tensors(tensors)), tensors)


@pytest.mark.parametrize("size", [0, 1, 5000])
def test_a_file_is_read_into_memory_that_may_be_written(tmp_path, size):
    (tmp_path / "file").write_bytes(bytes(range(256)) * 20)
    with (tmp_path / "file").open("r+b") as file:
        file.truncate(size)
    data = read_bytes(tmp_path / "file")
    assert data == (bytes(range(256)) * 20)[:size]
    assert not data.readonly
    assert len(empty_bytes(size)) == size


def test_a_file_that_is_cut_short_while_it_is_read(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"whole")
    monkeypatch.setattr("sparknet.training.run_files.tensor_bytes.empty_bytes", lambda size: bytearray(size + 1))
    with pytest.raises(OSError, match=r"file was cut short while it was read.*try again"):
        read_bytes(tmp_path / "file")


def broken(**entry):
    header = {"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **entry}}
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(8)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "0 bytes of saved tensors are damaged: the header is cut short"),
        ((1 << 40).to_bytes(8, "little") + b"{}", "the header is cut short"),
        (bytes(dump_tensors(TENSORS))[:-1], "bytes follow the header, and it tells of"),
        (broken(shape=[3]), r"bytes 0 to 8 are no F32 of shape \[3\]"),
        (broken(dtype="F99"), "F99"),
        (broken(data_offsets=[4, 8]), r"bytes 4 to 8 are no F32 of shape \[2\]"),
        (b"\x02" + bytes(7) + b"[]", "damaged"),
        (np.random.default_rng(0).bytes(64), "damaged"),
    ],
)
def test_damaged_bytes(data, message):
    with pytest.raises(CheckpointError, match=message):
        load_tensors(data)


def test_other_threads_go_on_meanwhile():
    """A heartbeat beats four times a second: no gap may come near to that."""
    tensors = {str(at): torch.randn(16_000_000) for at in range(4)}
    gaps, stop = [], threading.Event()

    def tick():
        last = time.monotonic()
        while not stop.wait(0.005):
            gaps.append(time.monotonic() - last)
            last = time.monotonic()

    ticker = threading.Thread(target=tick)
    ticker.start()
    data = dump_tensors(tensors)
    found = load_tensors(data)
    stop.set()
    ticker.join()
    assert torch.equal(found["0"], tensors["0"])
    assert max(gaps, default=0.0) < 1.0
