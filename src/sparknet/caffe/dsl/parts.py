"""What layers are given besides numbers: multipliers and names of parameters, rules, fillers."""

from collections.abc import Sequence
from typing import Literal

from sparknet.caffe.description.spec import PhaseName
from sparknet.caffe.schema import TEST, TRAIN, FillerParameter, NetStateRule, ParamSpec
from sparknet.errors import NetError

__all__ = [
    "Param",
    "Rule",
    "VarianceNorm",
    "bilinear",
    "constant",
    "gaussian",
    "msra",
    "positive_unitball",
    "uniform",
    "xavier",
]

VarianceNorm = Literal["FAN_IN", "FAN_OUT", "AVERAGE"]
"""What a filler's variance is divided by."""


def Param(lr_mult: float | None = None, decay_mult: float | None = None, *, name: str = "") -> ParamSpec:
    """Say how one of a layer's blobs is learned.

    Args:
        lr_mult: multiplies the learning rate; 0 keeps the blob as it is. 1 where not given.
        decay_mult: multiplies the weight decay. 1 where not given.
        name: blobs with the same name are one blob.
    """
    spec = ParamSpec()
    # What is not given is not written: two layers that share a blob may not contradict each other, and silence
    # does not.
    if name:
        spec.name = name
    if lr_mult is not None:
        spec.lr_mult = lr_mult
    if decay_mult is not None:
        spec.decay_mult = decay_mult
    return spec


def Rule(
    phase: PhaseName | None = None,
    *,
    stages: Sequence[str] = (),
    not_stages: Sequence[str] = (),
    min_level: int | None = None,
    max_level: int | None = None,
) -> NetStateRule:
    """Say which states a layer is in, or is left out of; all that is given must hold.

    Raises:
        NetError: `phase` is no phase.
    """
    # None where not given, since 0 is a level like any other.
    rule = NetStateRule(stage=stages, not_stage=not_stages, min_level=min_level, max_level=max_level)
    if phase is not None:
        if phase not in ("TRAIN", "TEST"):
            raise NetError(f"phase is {phase!r}; it must be TRAIN or TEST")
        rule.phase = TRAIN if phase == "TRAIN" else TEST
    return rule


def constant(value: float = 0.0) -> FillerParameter:
    """Every number is `value`."""
    return _filler("constant", value=value)


def uniform(low: float = 0.0, high: float = 1.0) -> FillerParameter:
    """Even between two limits."""
    return _filler("uniform", min=low, max=high)


def gaussian(*, std: float = 1.0, mean: float = 0.0, sparse: int = -1) -> FillerParameter:
    """Normal; with `sparse`, about that many numbers of each output are not 0."""
    return _filler("gaussian", mean=mean, std=std, sparse=sparse)


def xavier(variance_norm: VarianceNorm = "FAN_IN") -> FillerParameter:
    """U(±√(3 / n)); n is the fan-in, where nothing else is said (Glorot and Bengio 2010, as in Caffe)."""
    return _scaled("xavier", variance_norm)


def msra(variance_norm: VarianceNorm = "FAN_IN") -> FillerParameter:
    """N(0, 2 / n); n is the fan-in, where nothing else is said (arXiv 1502.01852, eq. 10)."""
    return _scaled("msra", variance_norm)


def positive_unitball() -> FillerParameter:
    """Even in 0..1, then divided so that each output's numbers sum to 1."""
    return _filler("positive_unitball")


def bilinear() -> FillerParameter:
    """Weights with which a Deconvolution enlarges an image linearly."""
    return _filler("bilinear")


def _scaled(kind: str, variance_norm: VarianceNorm) -> FillerParameter:
    known = FillerParameter.VarianceNorm.keys()
    if variance_norm not in known:
        raise NetError(f"{kind}: variance_norm is {variance_norm!r}; it must be one of {', '.join(known)}")
    return _filler(kind, variance_norm=FillerParameter.VarianceNorm.Value(variance_norm))


def _filler(kind: str, **fields: float) -> FillerParameter:
    # the type is always written, also "constant", which is the default: so it stands in people's files
    filler = FillerParameter(type=kind)
    for name, value in fields.items():
        if value != getattr(filler, name):
            setattr(filler, name, value)
    return filler
