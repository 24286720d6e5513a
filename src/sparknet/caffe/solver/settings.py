"""A solver file's values, checked."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any, Literal

from sparknet.caffe.schema import SolverParameter
from sparknet.caffe.solver.policies import RatePolicy
from sparknet.caffe.solver.rules import require
from sparknet.caffe.solver.update_rule import UpdateRule
from sparknet.errors import ConfigError

__all__ = ["SolverSettings"]

_log = logging.getLogger(__name__)

_TRAIN_NETS = ("net", "net_param", "train_net", "train_net_param")
_LISTS = ("test_iter", "stepvalue", "weights")


@dataclass(frozen=True, kw_only=True, slots=True)
class SolverSettings:
    """How to train: Caffe's `SolverParameter` without its nets, under the same names.

    Not here, since they change no number: solver_mode, device_id, debug_info, layer_wise_reduce, what Caffe's log
    shows (display, average_loss, test_compute_loss) and snapshot_diff (gradients are never written).
    """

    policy: RatePolicy
    """The rate."""
    rule: UpdateRule
    """What becomes of a gradient."""
    max_iter: int | None = None
    """Iterations of a whole run, those before a restored snapshot included."""
    test_iter: tuple[int, ...] = ()
    """Batches of a test, for each test net; the test nets are as many as these."""
    test_interval: int = 0
    """Iterations between tests; 0: no tests."""
    test_initialization: bool = True
    """Whether there is a test before the first iteration."""
    snapshot: int = 0
    """Iterations between snapshots; 0: none on the way."""
    snapshot_after_train: bool = True
    """Whether a run writes one at its end."""
    snapshot_prefix: str = ""
    """What the names of snapshots begin with, directory included."""
    snapshot_format: Literal["BINARYPROTO", "HDF5"] = "BINARYPROTO"
    """Form of model and state."""
    random_seed: int = -1
    """Seeds torch before the net is filled; negative: not seeded."""
    weights: tuple[str, ...] = ()
    """Weight files to start from."""

    def __post_init__(self) -> None:
        for key in ("test_interval", "snapshot"):
            value: int = getattr(self, key)
            require(value >= 0, key, value, "it must be at least 0; 0 is never")
        if self.max_iter is not None:
            require(self.max_iter >= 0, "max_iter", self.max_iter, "it must be at least 0")
        for value in self.test_iter:
            require(value >= 0, "test_iter", value, "it must be at least 0 batches")
        if self.test_iter:
            require(
                self.test_interval > 0,
                "test_interval",
                self.test_interval,
                f"test_iter asks for {len(self.test_iter)} test nets: set it, or remove test_iter",
            )

    @classmethod
    def from_message(
        cls, message: SolverParameter, source: str = "<solver>", *, own_nets: bool = True
    ) -> "SolverSettings":
        """Take the values of a message; a legacy one must have been upgraded.

        Args:
            message: the solver file.
            source: its name, for errors.
            own_nets: whether the nets are those that it names, which are then held against the tests it asks for.

        Raises:
            ConfigError: a value breaks a rule, as `source: key is value; ...`.
        """
        try:
            if own_nets:
                _check_nets(message)
            if not message.HasField("base_lr"):
                message = _with_rate(message, source)
            require(
                message.HasField("lr_policy"), "lr_policy", "missing", "set it to fixed, step, multistep or another"
            )
            formats = SolverParameter.SnapshotFormat
            return cls(
                policy=RatePolicy(**_given(message, RatePolicy)),
                rule=UpdateRule(**_given(message, UpdateRule)),
                snapshot_format="HDF5" if message.snapshot_format == formats.HDF5 else "BINARYPROTO",
                **_given(message, cls, but=("policy", "rule", "snapshot_format")),
            )
        except ConfigError as error:
            raise ConfigError(f"{source}: {error}") from error


def _with_rate(message: SolverParameter, source: str) -> SolverParameter:
    """The message of an AdaDelta solver without a rate, with the one that its rule has."""
    require(message.type == "AdaDelta", "base_lr", "missing", "it is the rate to start from: set base_lr")
    # Caffe 1.0 multiplies by the 0 that a missing number is, and so learns nothing.
    _log.warning(
        "%s: base_lr is missing: it is taken as 1, for AdaDelta (Zeiler 2012) has no rate; with Caffe's 0 nothing "
        "would be learned",
        source,
    )
    changed = SolverParameter()
    changed.CopyFrom(message)
    changed.base_lr = 1
    return changed


def _given(message: SolverParameter, settings: type[Any], but: Iterable[str] = ()) -> dict[str, Any]:
    """The message's values of the dataclass's fields, as far as it has them."""
    found: dict[str, Any] = {}
    for field in fields(settings):
        key = field.name
        if key in _LISTS:
            found[key] = tuple(getattr(message, key))
        # Only what is set: the defaults are those of the dataclasses, which know "missing" where protobuf gives 0.
        elif key not in but and message.HasField(key):
            found[key] = getattr(message, key)
    return found


def _check_nets(message: SolverParameter) -> None:
    """Caffe's rules about which nets a solver names (solver.cpp, InitTrainNet and InitTestNets)."""
    given = [key for key in _TRAIN_NETS if message.HasField(key)]
    require(
        len(given) <= 1,
        " and ".join(given),
        "given together",
        f"there is one training net: keep one of {', '.join(_TRAIN_NETS)}",
    )
    own = len(message.test_net) + len(message.test_net_param)
    tests = len(message.test_iter)
    require(
        bool(given) or tests <= own,
        "net",
        "missing",
        "the solver names no net, and test_iter asks for tests of one: set net to the net's prototxt",
    )
    generic = message.HasField("net") or message.HasField("net_param")
    rule = f"there are {own} test nets of their own (test_net, test_net_param), which need "
    if generic:
        require(tests >= own, "test_iter", f"given {tests} times", rule + f"at least {own}: one for each")
    else:
        require(tests == own, "test_iter", f"given {tests} times", rule + f"exactly {own}: one for each")
    states = len(message.test_state)
    require(
        states in (0, tests),
        "test_state",
        f"given {states} times",
        f"test_iter is given {tests} times: give a state for each test net, or none",
    )
