"""The preprocessing of a run, for training rows and for evaluated ones: made once on the driver, then data.

A Caffe net's data layers say it (`transform_param`), and each phase has its own; for other nets both are the same.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from sparknet.config import RunConfig
from sparknet.data.manifest import Manifest
from sparknet.data.preprocess import Normalise
from sparknet.errors import ConfigError, DataError, NetError, RunDirError
from sparknet.nets.layers import InputBlob
from sparknet.nets.weights.mean_image import read_mean
from sparknet.training.caffe_objective import CaffeObjective
from sparknet.training.intake import plain_normalise
from sparknet.training.objective import Objective

__all__ = ["Preprocessing", "file_normalise", "make_preprocessing", "mean_in_file"]

_FILE = "preprocess.safetensors"
_ROWS_OWN = "--set data.mean=image takes the training rows' own mean image instead"
_NO_MEAN = "--set data.mean=none takes none off"


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class Preprocessing:
    """What rows go through on their way to the net."""

    train: Normalise
    test: Normalise

    def save(self, run_dir: Path) -> None:
        """Keep it, so that a resumed run needs none of the files that it was made from.

        Raises:
            RunDirError: it cannot be written.
        """
        arrays = {
            f"{state}.{name}": np.asarray(array, order="C")
            for state, normalise in (("train", self.train), ("test", self.test))
            for name, array in normalise.to_arrays().items()
        }
        draft = run_dir / f".{_FILE}"
        try:
            save_file(arrays, draft)
            draft.replace(run_dir / _FILE)
        except (OSError, SafetensorError) as error:
            draft.unlink(missing_ok=True)
            raise RunDirError(
                f"{run_dir / _FILE} cannot be written: {error}; make room there, then resume"
            ) from error

    @classmethod
    def load(cls, run_dir: Path) -> "Preprocessing | None":
        """What `save` kept, or None where nothing was.

        Raises:
            RunDirError: it is damaged.
        """
        path = run_dir / _FILE
        if not path.exists():
            return None
        try:
            arrays = load_file(path)
            train, test = (Normalise.from_arrays(_under(arrays, state)) for state in ("train.", "test."))
        except (OSError, SafetensorError, DataError) as error:
            raise RunDirError(f"{path} is damaged: {error}; delete it, then resume the run") from error
        return cls(train=train, test=test)


def make_preprocessing(
    config: RunConfig, objective: Objective, manifest: Manifest, directory: Path, *, run_dir: Path
) -> Preprocessing:
    """Decide what rows go through, and keep it in the run directory.

    Args:
        config: `data.mean` and `data.scale`.
        objective: a Caffe net's data layers say the rest.
        manifest: of the prepared data.
        directory: the manifest's.
        run_dir: where mean images of files are kept: a run that is resumed needs the files no more.

    Raises:
        ConfigError: a mean file is missing or does not fit; the message says how to do without.
        DataError: the training rows' mean image cannot be read.
        RunDirError: what was kept is damaged, or it cannot be kept.
    """
    data = config.data
    from_rows = not config.net.prototxt or data.mean is not None
    prepared = Normalise.from_manifest(manifest, directory, mean=data.mean or "channel", scale=data.scale)
    if not isinstance(objective, CaffeObjective):
        return Preprocessing(train=prepared, test=prepared)
    kept = Preprocessing.load(run_dir)
    states: list[Normalise] = []
    for place, phase in enumerate(("TRAIN", "TEST")):
        image = objective.intakes[place].image
        plain = plain_normalise(image, phase)
        if from_rows:
            mean = prepared.mean
        elif kept is not None and image.transform.mean_file:
            mean = (kept.train, kept.test)[place].mean
        else:
            mean = mean_in_file(image, manifest.input.shape)
        states.append(dataclasses.replace(plain, mean=mean, scale=plain.scale * data.scale))
    made = Preprocessing(train=states[0], test=states[1])
    made.save(run_dir)
    return made


def file_normalise(config: RunConfig, objective: CaffeObjective, shape: tuple[int, ...]) -> Normalise:
    """The preprocessing of a TEST net without a run: only what its file says.

    Raises:
        ConfigError: `data.mean` asks for training rows, which are not there, or a mean file is missing.
    """
    if config.data.mean not in (None, "none"):
        raise ConfigError(
            f"data.mean is {config.data.mean!r}, the training rows' mean, and there is no run here that knows it; "
            "name a mean_file in the net, or test the run's directory: sparknet test RUN_DIR"
        )
    image = objective.intakes[1].image
    mean = None if config.data.mean == "none" else mean_in_file(image, shape, remedy=_NO_MEAN)
    plain = plain_normalise(image, "TEST")
    return dataclasses.replace(plain, mean=mean, scale=plain.scale * config.data.scale)


def mean_in_file(blob: InputBlob, shape: tuple[int, ...], *, remedy: str = _ROWS_OWN) -> np.ndarray | None:
    """The mean that a data layer names: a file's image or its values, float32; None where it names none.

    Args:
        blob: the layer's image.
        shape: of a stored row.
        remedy: how to do without the file, for messages.

    Raises:
        ConfigError: the file is missing or no mean image, or the mean does not fit the rows.
    """
    transform, where = blob.transform, f"layer {blob.layer!r} ({blob.kind})"
    if transform.mean_file:
        try:
            mean = read_mean(transform.mean_file)
        except NetError as error:
            raise ConfigError(f"{where}: mean_file: {error}, or {remedy}") from error
        if mean.shape != shape:
            raise ConfigError(
                f"{where}: mean_file {transform.mean_file} has shape {mean.shape} and the rows have {shape}; they "
                f"must be equal: give the mean of such rows, or {remedy}"
            )
        return mean
    if not transform.mean_values:
        return None
    if len(transform.mean_values) not in (1, shape[0]):
        raise ConfigError(
            f"{where}: {len(transform.mean_values)} mean_value for rows of shape {shape}; give one, or one per "
            "channel"
        )
    places = (1,) * (len(shape) - 1)
    values = np.array(transform.mean_values, np.float32)
    return np.broadcast_to(values, (shape[0],)).reshape(-1, *places).copy()


def _under(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
