"""Caffe's solver: a net, the update of its parameters, and their snapshots."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from sparknet.caffe.description.upgrade import upgrade_solver
from sparknet.caffe.layers import Shape
from sparknet.caffe.module.caffe_net import CaffeNet
from sparknet.caffe.prototxt import read_text
from sparknet.caffe.schema import SolverParameter
from sparknet.caffe.solver.batches import Inputs, as_tensors
from sparknet.caffe.solver.named_files import find_learned_net, listed_files, snapshot_prefix
from sparknet.caffe.solver.nets import NamedNets, NetPlan, SolverNets
from sparknet.caffe.solver.policies import RateSchedule
from sparknet.caffe.solver.settings import SolverSettings
from sparknet.caffe.solver.solverstate import SavedState, read_state, write_state
from sparknet.caffe.solver.updates import CaffeOptimizer, parameter_groups
from sparknet.caffe.weights.blobs import Array
from sparknet.caffe.weights.trained import load_weights
from sparknet.errors import CheckpointError, ConfigError, DataError, NetError

__all__ = ["CaffeSolver"]


class CaffeSolver:
    """Trains a net as Caffe's solver of the same settings does.

    Args:
        settings: how to train.
        net: the training net, or the plan of it.
        test_nets: the plans of the test nets, as many as `settings.test_iter`. Their layers share the weights of
            the training net's layers of the same names.
        input_shapes: shapes, with the batch axis, of inputs whose file tells none.

    Attributes:
        settings: how to train.
        iteration: finished iterations.
        outputs: the output blobs of the last training pass.
        last_rate: the rate of the last iteration.

    Raises:
        NetError: a net cannot be built, the training net has no loss or nothing to learn, or a file of
            `settings.weights` cannot be read.
    """

    def __init__(
        self,
        settings: SolverSettings,
        net: CaffeNet | NetPlan,
        test_nets: Sequence[NetPlan] = (),
        *,
        input_shapes: Mapping[str, Shape] | None = None,
    ) -> None:
        self.settings = settings
        self.iteration = 0
        self.outputs: dict[str, Tensor] = {}
        self.last_rate = 0.0
        self._schedule = RateSchedule(settings.policy)
        self._nets = SolverNets(net, test_nets, input_shapes)
        self._net: CaffeNet | None = None
        self._test_nets: list[CaffeNet] = []
        self._optimizer: CaffeOptimizer
        # A database layer's file tells no shape: the nets are then built when the first batch shows it.
        if not self._nets.unknown_inputs():
            self._build()

    @classmethod
    def from_prototxt(
        cls,
        path_or_text: str | os.PathLike[str],
        net: CaffeNet | None = None,
        *,
        input_shapes: Mapping[str, Shape] | None = None,
        allow_python_layers: bool = False,
    ) -> "CaffeSolver":
        """Build from a solver file, or from its text.

        Files that it names are looked for from the current directory, as in Caffe, then beside the solver file.

        Args:
            path_or_text: the solver file.
            net: a training net in place of the file's.
            input_shapes: shapes, with the batch axis, of inputs whose net file tells none.
            allow_python_layers: the nets' layers of type Python may run their code, looked for in PYTHONPATH, the
                current directory and beside the files.

        Raises:
            ConfigError: a setting is at fault; the message names file and key.
            NetError: a file is missing or holds no solver or net, or the training net has no loss or nothing to
                learn.
        """
        parsed = read_text(path_or_text, SolverParameter)
        message = upgrade_solver(parsed.message)
        file = Path(parsed.source) if parsed.source != "<text>" else None
        directory = file.parent if file else None
        settings = SolverSettings.from_message(message, parsed.source)
        settings = replace(
            settings,
            snapshot_prefix=snapshot_prefix(settings.snapshot_prefix, file),
            weights=tuple(listed_files(settings.weights, directory)),
        )
        nets = NamedNets(message, parsed.source, directory, allow_python_layers=allow_python_layers)
        training = nets.plan_training() if net is None else net
        return cls(settings, training, nets.plan_tests(), input_shapes=input_shapes)

    @property
    def net(self) -> CaffeNet:
        """The training net.

        Raises:
            NetError: it is not built yet.
        """
        if self._net is None:
            unknown = ", ".join(self._nets.unknown_inputs())
            raise NetError(
                f"the shapes of inputs {unknown} are not known, so the net is not built: "
                "give input_shapes, or take a step"
            )
        return self._net

    @property
    def test_nets(self) -> list[CaffeNet]:
        """The test nets; their weights are the training net's."""
        return self._test_nets

    @property
    def optimizer(self) -> CaffeOptimizer:
        """What updates the training net's parameters."""
        _ = self.net
        return self._optimizer

    @property
    def current_step(self) -> int:
        """Steps of the learning-rate policy that were passed."""
        return self._schedule.current_step

    def learning_rate(self) -> float:
        """The rate that the next iteration will have."""
        return self._schedule.peek(self.iteration)

    def history(self) -> list[Tensor]:
        """The optimiser's histories, live, in the order of Caffe's snapshots."""
        return self.optimizer.histories(self._tensors())

    def build_for(self, batch: Inputs) -> None:
        """Build the nets, if they are not, for inputs shaped like this batch."""
        if self._net is None:
            self._nets.learn_shapes(batch)
            self._build()

    def step(self, batches: Iterable[Inputs]) -> list[float]:
        """Train for as many iterations as the batches last; max_iter does not end it.

        Args:
            batches: iter_size batches for each iteration; too few for a last one are left unused.

        Returns:
            The loss of each iteration: the mean of the net's loss over its batches.
        """
        return [self._iterate(group) for group in _grouped(batches, self.settings.rule.iter_size)]

    def test(self, batches: Iterable[Inputs], place: int = 0) -> dict[str, Tensor]:
        """Judge the weights as they are.

        Args:
            batches: what the test net is given.
            place: which of `test_nets`.

        Returns:
            The means of the test net's outputs over the batches, by name.

        Raises:
            NetError: the nets are not built yet, or a batch does not fit.
            DataError: there are no batches.
        """
        _ = self.net
        net, sums, count = self._test_nets[place], dict[str, Tensor](), 0
        with torch.no_grad():
            for batch in batches:
                outputs = net(as_tensors(batch))
                for name in net.outputs:
                    # By sums, so that any number of batches holds one set of outputs.
                    value = outputs[name].float()
                    sums[name] = sums[name] + value if count else value
                count += 1
        if not count:
            raise DataError("there are 0 batches to test with; a test needs at least one: give more of them")
        return {name: value / count for name, value in sums.items()}

    def snapshot(self, prefix: str | None = None) -> tuple[Path, Path]:
        """Write weights and state, each whole or not at all.

        Args:
            prefix: what the names begin with, in place of snapshot_prefix.

        Returns:
            The files of weights and state.

        Raises:
            ConfigError: there is no prefix.
            NetError: a file cannot be written.
            CheckpointError: a file would be larger than its format allows.
        """
        model = self.snapshot_name(".caffemodel", prefix)
        state = self.snapshot_name(".solverstate", prefix)
        history = tuple(_array(blob) for blob in self.history())
        # The weights first, so that no state names weights that are not there.
        self.net.save_weights(model, as_loaded=False)
        write_state(
            SavedState(
                iteration=self.iteration, current_step=self.current_step, learned_net=model, history=history
            ),
            state,
        )
        return Path(model), Path(state)

    def snapshot_name(self, ending: str, prefix: str | None = None) -> str:
        """The name of a snapshot's file, ".h5" added for HDF5.

        Raises:
            ConfigError: there is no prefix.
        """
        stem = self.settings.snapshot_prefix if prefix is None else os.fspath(prefix)
        if not stem:
            raise ConfigError(
                "snapshot_prefix is missing; the names of snapshots begin with it: set it, or have none written "
                "(snapshot: 0, snapshot_after_train: false)"
            )
        return f"{stem}_iter_{self.iteration}{ending}" + (".h5" if self.settings.snapshot_format == "HDF5" else "")

    def restore(self, path: str | os.PathLike[str]) -> None:
        """Go on from a state that this solver or Caffe wrote, with the weights that it names.

        These are looked for from the current directory, as in Caffe, then from the state's directory, then beside
        the state.

        Raises:
            CheckpointError: the state is missing or damaged, or is of another net or solver type.
            NetError: the weights are damaged, or of another net.
        """
        state = read_state(path)
        # Checked before the weights are loaded: a solver that refuses a state goes on as it was.
        try:
            self.optimizer.check_histories(self._tensors(), [blob.shape for blob in state.history])
        except CheckpointError as error:
            raise CheckpointError(f"{os.fspath(path)}: {error}") from error
        if state.learned_net:
            load_weights(self.net, find_learned_net(state.learned_net, Path(path)), whole=True)
        self.optimizer.load_histories(
            self._tensors(), [torch.tensor(blob) for blob in state.history], state.iteration
        )
        self.iteration = state.iteration
        self._schedule.current_step = state.current_step

    def _iterate(self, batches: Sequence[Inputs]) -> float:
        self.build_for(batches[0])
        net, optimizer = self.net, self._optimizer
        optimizer.zero_grad()
        total = 0.0
        for batch in batches:
            outputs = net(as_tensors(batch))
            loss = net.loss(outputs)
            # A net whose lr_mult are all 0 has a loss without a gradient, and Caffe runs it all the same.
            if loss.requires_grad:
                loss.backward()
            total += float(loss.detach())
            self.outputs = {name: value.detach() for name, value in outputs.items()}
        # After the passes and right before the update, as in Caffe's ApplyUpdate.
        self.last_rate = self._schedule.advance(self.iteration)
        for group in optimizer.param_groups:
            group["lr"] = self.last_rate
        optimizer.step()
        self.iteration += 1
        return total / len(batches)

    def _tensors(self) -> list[Tensor]:
        return [blob.tensor for blob in self.net.learnable]

    def _build(self) -> None:
        # Once for all nets, the training net first: that is the order in which Caffe's fillers draw.
        if self.settings.random_seed >= 0:
            torch.manual_seed(self.settings.random_seed)
        net, self._test_nets = self._nets.build(self.settings.weights)
        _check_trainable(net)
        self._optimizer = CaffeOptimizer(
            parameter_groups(net.learnable), lr=self._schedule.peek(0), rule=self.settings.rule
        )
        self._net = net


def _check_trainable(net: CaffeNet) -> None:
    where = net.spec.source
    if not net.learnable:
        raise NetError(
            f"{where}: the training net has no learnable blobs, so there is nothing to train: add a layer that has "
            "some, InnerProduct or Convolution say"
        )
    if not any(weight for step in net.steps for weight in step.weights):
        raise NetError(
            f"{where}: no top of the training net has a loss weight: add a loss layer, SoftmaxWithLoss say, or a "
            "loss_weight"
        )


def _array(blob: Tensor) -> Array:
    # Caffe's files have float and double: whatever is narrower is widened.
    wide = blob.detach().cpu()
    return (wide if wide.dtype == torch.float64 else wide.float()).numpy()


def _grouped(batches: Iterable[Inputs], size: int) -> Iterator[list[Inputs]]:
    iterator = iter(batches)
    # An iteration with fewer batches would be divided by iter_size all the same, and step too short.
    while len(group := list(islice(iterator, size))) == size:
        yield group
