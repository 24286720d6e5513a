"""The nets that a solver file names, and building them (solver.cpp, InitTrainNet and InitTestNets)."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sparknet.caffe.description.spec import NetSpec, PhaseName
from sparknet.caffe.layers import INPUT_LAYERS, InputBlob, Shape, input_blobs
from sparknet.caffe.module.caffe_net import CaffeNet
from sparknet.caffe.schema import TEST, TRAIN, NetParameter, NetState, SolverParameter
from sparknet.caffe.solver.batches import Inputs
from sparknet.caffe.solver.named_files import find_file
from sparknet.errors import ConfigError

__all__ = ["NamedNets", "NetPlan", "SolverNets"]


@dataclass(frozen=True, kw_only=True, slots=True)
class NetPlan:
    """One net to build: its description and the state in which it is wanted."""

    spec: NetSpec
    state: NetState

    def inputs(self) -> list[InputBlob]:
        """What the net must be given."""
        chosen = self.spec.select(self._phase, level=self.state.level, stages=self.state.stage)
        return [
            blob for layer in chosen.parameters.layer if layer.type in INPUT_LAYERS for blob in input_blobs(layer)
        ]

    def build(self, input_shapes: Mapping[str, Shape]) -> CaffeNet:
        """Build it.

        Args:
            input_shapes: as the net takes them, with the batch axis; names that are no input of it are passed over.

        Raises:
            NetError: the description is not a net, or a shape is neither there nor in the file.
        """
        # The shapes are of all the solver's nets, and a net refuses names that are no input of it.
        own = {blob.name for blob in self.inputs()}
        return CaffeNet(
            self.spec,
            self._phase,
            level=self.state.level,
            stages=tuple(self.state.stage),
            input_shapes={name: shape for name, shape in input_shapes.items() if name in own},
        )

    @property
    def _phase(self) -> PhaseName:
        return "TRAIN" if self.state.phase == TRAIN else "TEST"


class SolverNets:
    """A solver's nets, built once the shapes of what they are given are known.

    Args:
        net: the training net, or the plan of it.
        tests: the plans of the test nets.
        input_shapes: shapes, with the batch axis, of inputs whose file tells none.
    """

    def __init__(
        self, net: CaffeNet | NetPlan, tests: Sequence[NetPlan], input_shapes: Mapping[str, Shape] | None
    ) -> None:
        self._net = net
        self._tests = tests
        self._shapes = dict(input_shapes or {})

    def unknown_inputs(self) -> list[str]:
        """The training net's inputs whose shapes neither its file nor anybody has told."""
        if isinstance(self._net, CaffeNet):
            return []
        return [blob.name for blob in self._net.inputs() if blob.shape is None and blob.name not in self._shapes]

    def learn_shapes(self, batch: Inputs) -> None:
        """Take the unknown shapes from a batch."""
        self._shapes |= {name: tuple(batch[name].shape) for name in self.unknown_inputs() if name in batch}

    def build(self, weights: Iterable[str] = ()) -> tuple[CaffeNet, list[CaffeNet]]:
        """Build the training net and the test nets, which share the weights of its layers of the same names.

        Args:
            weights: files that the training net starts from.

        Raises:
            NetError: a description is not a net, a shape is not known, or a file cannot be read.
        """
        net = self._net if isinstance(self._net, CaffeNet) else self._net.build(self._shapes)
        # Before the test nets are there: they take these tensors and so have what was loaded.
        for name in weights:
            net.load_weights(name)
        shapes = self._shapes | {name: net.shapes[name] for name in net.inputs}
        tests: list[CaffeNet] = []
        for plan in self._tests:
            # A test net has a batch of its own where its file says so; else that of the training net.
            told = {blob.name for blob in plan.inputs() if blob.shape is not None}
            tests.append(plan.build({name: shape for name, shape in shapes.items() if name not in told}))
            tests[-1].share_weights(net)
        return net, tests


class NamedNets:
    """The nets that a solver file names, in the states that it wants them in; each file is read once.

    Args:
        message: the solver file.
        source: its name, for errors.
        directory: where it lies; None for text that came from no file.
        allow_python_layers: the nets' layers of type Python may run their code.
        read: reads the net's file of a path.
    """

    def __init__(
        self,
        message: SolverParameter,
        source: str,
        directory: Path | None,
        *,
        allow_python_layers: bool = False,
        read: Callable[[Path], NetSpec] = NetSpec.from_prototxt,
    ) -> None:
        self._allow_python_layers = allow_python_layers
        self._message = message
        self._source = source
        self._directory = directory
        self._open = read
        self._read: dict[str, NetSpec] = {}

    def plan_training(self) -> NetPlan:
        """The training net: phase TRAIN, then the net's own state, then train_state.

        Raises:
            ConfigError: the solver names no net.
            NetError: the net's file is at fault.
        """
        message = self._message
        if message.HasField("train_net_param"):
            spec = NetSpec.from_message(message.train_net_param, f"{self._source}: train_net_param")
        else:
            spec = self._file(message.train_net) if message.HasField("train_net") else self._common()
        return self._in_state(spec, TRAIN, message.train_state)

    def plan_tests(self) -> list[NetPlan]:
        """The test nets in Caffe's order: test_net_param, test_net, then the common net, a test_iter each.

        Raises:
            NetError: a net's file is at fault.
        """
        message = self._message
        specs = [NetSpec.from_message(own, f"{self._source}: test_net_param") for own in message.test_net_param]
        specs += [self._file(name) for name in message.test_net]
        # The common net fills what is left, as often as there are tests: each may have a state of its own.
        if len(message.test_iter) > len(specs):
            specs += [self._common()] * (len(message.test_iter) - len(specs))
        states = list(message.test_state) or [NetState()] * len(specs)
        return [self._in_state(spec, TEST, state) for spec, state in zip(specs, states, strict=True)]

    def _common(self) -> NetSpec:
        message = self._message
        if message.HasField("net_param"):
            return NetSpec.from_message(message.net_param, f"{self._source}: net_param")
        if not message.HasField("net"):
            raise ConfigError(f"{self._source}: it names no net; set net to the net's prototxt")
        return self._file(message.net)

    def _file(self, name: str) -> NetSpec:
        path = find_file(name, self._directory)
        if path not in self._read:
            self._read[path] = self._open(Path(path))
        return self._read[path]

    def _in_state(self, spec: NetSpec, phase: int, last: NetState) -> NetPlan:
        """The state of a net: the solver's phase, then what the net's file says, then what the solver says."""
        if self._allow_python_layers:
            spec = spec.allowing_python_layers(*self._places(spec))
        own: NetParameter = spec.parameters
        state = NetState(phase=TRAIN if phase == TRAIN else TEST)
        # Each overrides the one before, and stages add up: so protobuf merges, and Caffe's order is this.
        state.MergeFrom(own.state)
        state.MergeFrom(last)
        return NetPlan(spec=spec, state=state)

    def _places(self, spec: NetSpec) -> list[Path]:
        """Where modules of Python layers are looked for: the current directory, beside net and solver."""
        file = Path(spec.source)
        beside = file.parent if "\n" not in spec.source and file.is_file() else None
        return [Path.cwd(), *(place for place in (beside, self._directory) if place is not None)]
