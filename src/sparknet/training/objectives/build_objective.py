"""From a configuration's net to an objective: a module of the user's, a zoo entry, or a Caffe file."""

import torch

from sparknet.caffe.description.spec import NetSpec, PhaseName
from sparknet.caffe.module.caffe_net import CaffeNet
from sparknet.config import Net
from sparknet.training.objectives.caffe_objective import CaffeObjective
from sparknet.training.objectives.find_net import build_net
from sparknet.training.objectives.input_binding import Intake, RowKind, batch_in_file, intake_of
from sparknet.training.objectives.objective import EVALUATION_BATCH, ModuleObjective, Objective

__all__ = ["build_objective", "build_test_objective"]


def build_objective(net: Net, rows: RowKind, *, batch_size: int, seed: int) -> Objective:
    """Build the net of a run on the CPU; the same net and seed give bit-identical weights.

    Args:
        net: which one.
        rows: what it is fed.
        batch_size: rows of a training step.
        seed: of the initial weights.

    Raises:
        NetError: it cannot be found or built, does not take these rows, or cannot be trained.
    """
    if net.prototxt:
        spec = NetSpec.from_prototxt(net.prototxt)
        train, intake = _state(spec, rows, phase="TRAIN", batch=batch_size, seed=seed)
        return _caffe_objective(spec, train, intake, rows, channels_last=net.channels_last)
    module = build_net(net.name, net.arguments, input_shape=rows.input.shape, classes=rows.classes, seed=seed)
    if isinstance(module, CaffeNet):
        intake = intake_of(module.spec, rows, batch=batch_size, phase="TRAIN")
        return _caffe_objective(module.description, module, intake, rows, channels_last=net.channels_last)
    return ModuleObjective(module, name=net.name, channels_last=net.channels_last)


def build_test_objective(net: Net, rows: RowKind) -> CaffeObjective:
    """Build the TEST net of a Caffe file alone, to be judged and not to be trained.

    Raises:
        NetError: it cannot be built, does not take these rows, or measures nothing.
    """
    spec = NetSpec.from_prototxt(net.prototxt)
    batch = _test_batch(spec)
    test, intake = _state(spec, rows, phase="TEST", batch=batch, seed=0)
    objective = CaffeObjective(
        test, test, intakes=(intake, intake), test_batch=batch, channels_last=net.channels_last
    )
    objective.check_measures()
    return objective


def _caffe_objective(
    spec: NetSpec, train: CaffeNet, intake: Intake, rows: RowKind, *, channels_last: bool
) -> CaffeObjective:
    batch = _test_batch(spec)
    test, test_intake = _state(spec, rows, phase="TEST", batch=batch, seed=0)
    objective = CaffeObjective(
        train, test, intakes=(intake, test_intake), test_batch=batch, channels_last=channels_last
    )
    objective.check()
    return objective


def _test_batch(spec: NetSpec) -> int:
    return batch_in_file(spec.select("TEST")) or EVALUATION_BATCH


def _state(spec: NetSpec, rows: RowKind, *, phase: PhaseName, batch: int, seed: int) -> tuple[CaffeNet, Intake]:
    intake = intake_of(spec.select(phase), rows, batch=batch, phase=phase)
    with torch.random.fork_rng(devices=[]):
        # this generator alone: torch.manual_seed would also reseed GPUs, which fork_rng does not restore here
        torch.default_generator.manual_seed(seed)
        return CaffeNet(spec, phase, input_shapes=intake.shapes), intake
