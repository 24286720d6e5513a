"""The flat buffer: the module's own tensors are views of it, in whatever form they come."""

import pytest
import torch
from torch import nn

from sparknet.training.sync.flat_weights import CHUNK, FOLD, FlatWeights, WeightsHash, _may_move, chunks


def conv_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


def output(net: nn.Module) -> torch.Tensor:
    net.eval()
    with torch.no_grad():
        return net(torch.linspace(-1, 1, 2 * 27).view(2, 3, 3, 3).to(next(net.parameters()).dtype))


def test_the_module_computes_the_same_and_lives_in_the_buffer():
    net = conv_net()
    before = output(net)
    flat = FlatWeights(net)
    assert torch.equal(output(net), before)
    with torch.no_grad():
        flat.local.zero_()
    assert all(not parameter.any() for parameter in net.parameters())
    assert not net[1].running_var.any()
    net[3].bias.data.fill_(2.0)
    assert (flat.local == 2.0).sum() == 2


def test_training_writes_into_the_buffer():
    net = conv_net()
    flat = FlatWeights(net)
    before = flat.local.clone()
    solver = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    net(torch.randn(4, 3, 3, 3)).square().sum().backward()
    solver.step()
    assert not torch.equal(flat.local, before)
    statistics = torch.cat([net[1].running_mean, net[1].running_var])
    assert torch.equal(flat.local[flat.trainable : flat.trainable + 8], statistics)


def test_trainable_parameters_come_first_then_frozen_ones_then_buffers():
    net = conv_net()
    net[0].weight.requires_grad_(False)
    frozen = net[0].weight.clone()
    flat = FlatWeights(net)
    assert flat.trainable == sum(p.numel() for p in net.parameters()) - frozen.numel()
    with torch.no_grad():
        flat.local[: flat.trainable] = 5.0
    assert torch.equal(net[0].weight, frozen)
    assert bool((net[3].weight == 5.0).all())
    assert net[0].weight.requires_grad is False


def test_the_buffer_is_padded_with_zeros():
    flat = FlatWeights(nn.Linear(3, 2))
    assert flat.local.numel() == FOLD
    assert not flat.local[8:].any()


def test_channels_last_keeps_its_strides():
    net = conv_net().to(memory_format=torch.channels_last)
    before = output(net)
    strides = net[0].weight.stride()
    FlatWeights(net)
    assert net[0].weight.stride() == strides
    assert net[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(output(net), before)


def test_tied_parameters_stay_tied_and_count_once():
    net = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    net[1].weight = net[0].weight
    flat = FlatWeights(net)
    assert flat.trainable == 9
    with torch.no_grad():
        flat.local[0] = 42.0
    assert net[0].weight[0, 0] == net[1].weight[0, 0] == 42.0
    assert net[0].weight is net[1].weight


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_float_types_are_copied_by_gather_and_scatter(dtype):
    net = nn.Linear(3, 2).to(dtype)
    flat = FlatWeights(net)
    with torch.no_grad():
        net.weight.fill_(0.5)
    flat.gather()
    assert torch.equal(flat.local[:6], torch.full((6,), 0.5))
    flat.local[:8] = torch.arange(8.0)
    flat.scatter()
    assert net.weight.dtype == dtype
    assert net.weight.flatten().tolist() == [0, 1, 2, 3, 4, 5]
    assert net.bias.tolist() == [6, 7]


def test_without_a_mirror_there_is_one_vector_and_one_piece():
    flat = FlatWeights(conv_net())
    assert flat.local is flat.flat
    assert list(flat.gathered()) == list(flat.scattered()) == [slice(0, FOLD)]


def test_the_host_has_a_copy_of_a_device_which_is_brought_and_sent(monkeypatch):
    monkeypatch.setattr("sparknet.training.sync.flat_weights.TRANSFER", FOLD)
    net = nn.Linear(FOLD, 3)
    flat = FlatWeights(net, mirror=True)
    assert flat.local.data_ptr() != flat.flat.data_ptr()
    with torch.no_grad():
        net.weight.fill_(2.0)
    pieces = list(flat.gathered())
    assert pieces == [slice(at * FOLD, (at + 1) * FOLD) for at in range(4)]
    assert torch.equal(flat.local, flat.flat)
    flat.local.fill_(5.0)
    assert not (net.weight == 5.0).any(), "nothing was sent"
    sent = []
    for _ in flat.scattered():
        sent.append(int((net.weight == 5.0).sum()) // FOLD)
    assert sent == [0, 1, 2, 3], "a piece is sent when the next is asked for"
    assert bool((net.bias == 5.0).all())


@pytest.mark.parametrize("pieces", [FlatWeights.gathered, FlatWeights.scattered])
def test_who_is_given_a_piece_still_has_gradients(pieces):
    for _ in pieces(FlatWeights(conv_net().double(), mirror=True)):
        assert torch.is_grad_enabled()


def test_a_mirror_passes_other_float_types_on():
    net = nn.Linear(3, 2).double()
    flat = FlatWeights(net, mirror=True)
    with torch.no_grad():
        net.weight.fill_(0.5)
    flat.gather()
    assert flat.local[:6].tolist() == [0.5] * 6
    flat.local[:8] = torch.arange(8.0)
    flat.scatter()
    assert net.weight.flatten().tolist() == [0, 1, 2, 3, 4, 5]


def test_on_a_device_weights_that_share_their_memory_stay_where_they_are():
    """An RNN's weights on a GPU: cuDNN wants them in one block in its own order."""
    device, block = torch.device("meta"), torch.empty(10, device="meta")
    assert _may_move(block, device)
    assert not _may_move(block[:5], device)
    assert not _may_move(block.double(), device)
    assert not _may_move(torch.empty(10), device)
    assert _may_move(torch.empty(10)[:5], torch.device("cpu"))


def test_integer_buffers_are_counters():
    net = nn.Module()
    net.register_buffer("seen", torch.tensor(7))
    net.register_buffer("table", torch.tensor([[1, 2], [3, 4]], dtype=torch.int32))
    net.register_buffer("used", torch.tensor([True, False]))
    net.weight = nn.Parameter(torch.zeros(1))
    flat = FlatWeights(net)
    assert flat.read_counters().tolist() == [7, 1, 2, 3, 4, 1, 0]
    flat.write_counters(torch.tensor([9, 5, 6, 7, 8, 0, 1]))
    assert net.seen.item() == 9
    assert net.seen.shape == ()
    assert net.table.tolist() == [[5, 6], [7, 8]]
    assert net.used.tolist() == [False, True]


def test_a_net_without_counters_has_none():
    assert FlatWeights(nn.Linear(2, 2)).read_counters().numel() == 0


@pytest.mark.parametrize("size", [FOLD, CHUNK, CHUNK + FOLD, 3 * CHUNK])
def test_chunks_cover_a_vector_once(size):
    vector, other = torch.arange(float(size)), torch.zeros(size)
    for piece, target in chunks(vector, other):
        assert piece.numel() <= CHUNK
        target += piece
    assert torch.equal(vector, other)
    pieces = [piece for (piece,) in chunks(vector, start=5, stop=size - 3)]
    assert torch.equal(torch.cat(pieces), vector[5:-3])


@pytest.mark.parametrize("place", [0, 1, FOLD, CHUNK - 1, CHUNK, CHUNK + FOLD - 1])
@pytest.mark.parametrize("bit", [0, 22, 31])
def test_the_hash_changes_with_any_bit(place, bit):
    vector = torch.randn(CHUNK + FOLD, generator=torch.Generator().manual_seed(0))
    before = WeightsHash.of(vector)
    bits = vector.view(torch.int32)
    flipped = 1 << bit if bit < 31 else -(1 << 31)
    bits[place] ^= flipped
    assert WeightsHash.of(vector) != before
    bits[place] ^= flipped
    assert WeightsHash.of(vector) == before


def test_the_hash_is_the_same_in_whatever_pieces_it_is_made():
    vector = torch.randn(CHUNK + 2 * FOLD, generator=torch.Generator().manual_seed(0))
    pieces = WeightsHash()
    for piece in vector.split(FOLD):
        pieces.add(piece)
    assert pieces.hex() == WeightsHash.of(vector)
    assert len(pieces.hex()) == 16


def test_the_hash_tells_minus_zero_from_zero():
    vector = torch.zeros(FOLD)
    other = vector.clone()
    other[3] = -0.0
    assert WeightsHash.of(vector) != WeightsHash.of(other)
