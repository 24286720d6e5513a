"""From a recipe to an objective: a module of the user's, a zoo entry, or a Caffe file."""

from dataclasses import replace

from sparknet.caffe.description.spec import NetSpec, PhaseName
from sparknet.caffe.layers.user_code import find_layer
from sparknet.caffe.module.caffe_net import CaffeNet
from sparknet.config import Data, Measure
from sparknet.data.rows.row_schema import RowSchema
from sparknet.errors import ConfigError, NetError
from sparknet.training.objectives.caffe_objective import CaffeObjective
from sparknet.training.objectives.find_net import build_net, find_net
from sparknet.training.objectives.input_binding import Intake, batch_in_file, intake_of, seen_rows
from sparknet.training.objectives.losses import find_loss
from sparknet.training.objectives.module_objective import ModuleObjective
from sparknet.training.objectives.net_weights import freeze
from sparknet.training.objectives.objective import EVALUATION_BATCH, Objective
from sparknet.training.objectives.recipe import Recipe
from sparknet.training.objectives.seeding import drawing_from
from sparknet.training.objectives.torch_metric import find_metric

__all__ = ["build_objective", "build_test_objective", "check_net"]


def check_net(recipe: Recipe) -> None:
    """Find what is wrong with a net's name or file, and with those of loss and measures, without building it.

    Raises:
        NetError: there is no such net, or a layer of the file has contradicting rules, or is code that may not run
            or is not there.
        ConfigError: there is no such loss or measure, or code would be compiled.
    """
    if recipe.spec is None:
        find_net(recipe.net.name, recipe.code)
        find_loss(recipe.objective, recipe.code)
        for one in recipe.objective.measures:
            find_metric(Measure(name=one) if isinstance(one, str) else one)
        return
    # For what they refuse.
    phases: tuple[PhaseName, ...] = ("TRAIN", "TEST")
    for phase in phases:
        _check_python_layers(recipe.spec.select(phase))
    # What a compiler makes of the rest is for one size of batch, and such layers give images of any.
    if recipe.net.compile and any(recipe.spec.python_layers()):
        raise ConfigError(
            "net.compile is true and the net has Python layers, which are not compiled: leave net.compile out"
        )


def _check_python_layers(state: NetSpec) -> None:
    state.check_python_layers()
    for index, layer in state.python_layers():
        try:
            find_layer(layer, state.python_path or ())
        except NetError as error:
            raise NetError(f"{state.place(index)}: {error}") from error


def build_objective(
    recipe: Recipe, rows: RowSchema, *, batch_size: int, seed: int, data: Data | None = None
) -> Objective:
    """Build the net of a run on the CPU; the same net and seed give bit-identical weights.

    Args:
        recipe: which one.
        rows: what is stored.
        batch_size: rows of a training step.
        seed: of the initial weights.
        data: what rows go through on their way to the net; None: they are fed as they are.

    Raises:
        NetError: it cannot be found or built, does not take these rows, or cannot be trained.
        ConfigError: `data` cuts or mirrors what cannot be, or what the net's file cuts and mirrors itself; loss,
            measures or frozen parameters do not suit net and rows.
    """
    fed = rows if data is None else seen_rows(rows, data)
    net, binding = recipe.net, _Binding(fed, data)
    if recipe.spec is not None:
        train, intake = binding.state(recipe.spec, phase="TRAIN", batch=batch_size, seed=seed)
        freeze(train, net.freeze)
        return _trained(binding, train, intake, channels_last=net.channels_last)
    module = build_net(recipe, fed, seed=seed)
    freeze(module, net.freeze)
    # It came from a description, of the zoo or of the user's, whose inputs are known only now.
    if isinstance(module, CaffeNet):
        intake = binding.intake(module.spec, phase="TRAIN", batch=batch_size)
        return _trained(binding, module, intake, channels_last=net.channels_last)
    return ModuleObjective(
        module, fed, recipe.objective, name=net.name, channels_last=net.channels_last, code=recipe.code
    )


def build_test_objective(
    recipe: Recipe, rows: RowSchema, *, data: Data | None = None, measured: bool = True
) -> CaffeObjective:
    """Build the TEST net of a Caffe file alone, to be judged and not to be trained.

    Args:
        recipe: of a Caffe file.
        rows: what is stored.
        data: what rows go through on their way to the net; None: they are fed as they are.
        measured: it is to measure something; a net that is only asked for what it makes of rows need not.

    Raises:
        NetError: it cannot be built, does not take these rows, or measures nothing and must.
        ConfigError: `data` cuts or mirrors what cannot be, or what the net's file cuts and mirrors itself.
    """
    if recipe.spec is None:
        raise ConfigError(
            f"net.name is {recipe.net.name!r}; only a Caffe file has a TEST net of its own: set net.prototxt"
        )
    # A net that was cut down to a state of phase TRAIN has nothing else, and is tested as it trains.
    phase = "TEST" if recipe.spec.select("TEST").parameters.layer else "TRAIN"
    batch = batch_in_file(recipe.spec.select(phase)) or EVALUATION_BATCH
    binding = _Binding(rows if data is None else seen_rows(rows, data), data)
    test, intake = binding.state(recipe.spec, phase=phase, batch=batch, seed=0)
    # One net in both roles: a file that is only tested need not have a net of phase TRAIN.
    objective = CaffeObjective(
        test,
        test,
        intakes=(intake, intake),
        test_batch=batch,
        channels_last=recipe.net.channels_last,
        judged_as_trained=phase == "TRAIN",
    )
    if measured:
        objective.check_measures()
    return objective


class _Binding:
    """Builds the states of a Caffe net for the same rows.

    Attributes:
        tested: rows are held out, so that there is something to test.
        tests: names of further rows, each judged by the phase TEST of a stage of that name.
    """

    def __init__(self, fed: RowSchema, data: Data | None) -> None:
        self._fed = fed
        self._data = data
        self.tested = data is None or data.validation is None
        self.tests = tuple(data.tests) if data is not None else ()

    def intake(self, state: NetSpec, *, phase: PhaseName, batch: int) -> Intake:
        """How one state takes the rows."""
        return intake_of(state, self._fed, batch=batch, phase=phase, data=self._data)

    def state(self, spec: NetSpec, *, phase: PhaseName, batch: int, seed: int) -> tuple[CaffeNet, Intake]:
        """Build one state of a net."""
        intake = self.intake(spec.select(phase), phase=phase, batch=batch)
        with drawing_from(seed):
            level = spec.parameters.state.level  # where the file itself says it, as `select` has it
            return CaffeNet(spec, phase, level=level, input_shapes=intake.shapes), intake


def _trained(binding: _Binding, train: CaffeNet, intake: Intake, *, channels_last: bool) -> CaffeObjective:
    """The objective of a TRAIN net, with its TEST net."""
    _stop_frozen(train)
    if not binding.tested:
        # A file that is only trained need not have a net of phase TEST: the one net plays both roles.
        untested = CaffeObjective(
            train, train, intakes=(intake, intake), test_batch=EVALUATION_BATCH, channels_last=channels_last
        )
        untested.check_training()
        return untested
    batch = _test_batch(train.description)
    # The seed is of no account: the TEST net takes the tensors of the TRAIN net's layers, and only layers that it
    # alone has keep what their fillers draw.
    test, test_intake = binding.state(train.description, phase="TEST", batch=batch, seed=0)
    objective = CaffeObjective(
        train, test, intakes=(intake, test_intake), test_batch=batch, channels_last=channels_last
    )
    objective.check()
    for name in binding.tests:
        state = train.description.in_stage(name)
        batch = _test_batch(state)
        other, other_intake = binding.state(state, phase="TEST", batch=batch, seed=0)
        judge = CaffeObjective(
            train, other, intakes=(intake, other_intake), test_batch=batch, channels_last=channels_last
        )
        judge.check_measures()
        objective.judges[name] = judge
    return objective


def _stop_frozen(net: CaffeNet) -> None:
    """Give frozen parameters the rate 0."""
    # A Caffe solver takes a tensor without a gradient for one of gradient 0, which decays; and a snapshot must have
    # a history for it.
    stay = [bool(blob.lr_mult) and not blob.tensor.requires_grad for blob in net.learnable]
    net.learnable = [
        replace(blob, lr_mult=0.0) if stays else blob for blob, stays in zip(net.learnable, stay, strict=True)
    ]


def _test_batch(spec: NetSpec) -> int:
    return batch_in_file(spec.select("TEST")) or EVALUATION_BATCH
