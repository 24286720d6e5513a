"""The preprocessing of a run, for training rows and for evaluated ones: made once on the driver, then data.

A Caffe net's data layers say it (`transform_param`), each phase for itself; for other nets the configuration does:
training rows are cut at random and mirrored, evaluated ones cut in the middle. Mean and deviation can be set in the
configuration for both kinds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from sparknet.caffe.weights.mean_image import read_mean
from sparknet.config import Data, RunConfig
from sparknet.data.loading.transform import Normalise, channel_values
from sparknet.data.rows.row_schema import RowSchema
from sparknet.data.shards.manifest import Manifest
from sparknet.errors import ConfigError, DataError, NetError, RunDirError
from sparknet.training.objectives.input_binding import check_augmentation, seen_rows
from sparknet.training.objectives.objective import InputTransform, InputTransforms
from sparknet.whole_files import whole_file

__all__ = ["Preprocessing", "check_preprocessing", "file_normalise", "make_preprocessing", "mean_in_file"]

_FILE = "preprocess.safetensors"
_MEANS = ("train.mean_file", "test.mean_file")
_ROWS_OWN = "--set data.mean=image takes the training rows' own mean image instead"
_NO_MEAN = "--set data.mean=none takes none off"


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class Preprocessing:
    """What rows go through on their way to the net."""

    train: Normalise
    test: Normalise
    mean_files: tuple[str | None, str | None] = ("", "")
    """The files that the two means come from: "" for none, None where that was not kept."""

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
        try:
            with whole_file(run_dir / _FILE) as draft:
                save_file(arrays, draft, metadata=self._told())
        except (OSError, SafetensorError) as error:
            raise RunDirError(
                f"{run_dir / _FILE} cannot be written: {error}; make room there, then resume"
            ) from error

    def _told(self) -> dict[str, str]:
        # The metadata of safetensors is text alone: what was not kept is left out.
        pairs = zip(_MEANS, self.mean_files, strict=True)
        return {name: file for name, file in pairs if file is not None}

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
            with safe_open(path, framework="np") as file:
                told: dict[str, str] = file.metadata() or {}
            train, test = (Normalise.from_arrays(_under(arrays, state)) for state in ("train.", "test."))
        except (OSError, SafetensorError, DataError) as error:
            raise RunDirError(f"{path} is damaged: {error}; delete it, then resume the run") from error
        return cls(train=train, test=test, mean_files=(told.get(_MEANS[0]), told.get(_MEANS[1])))


def make_preprocessing(
    config: RunConfig, transforms: InputTransforms, manifest: Manifest, directory: Path, *, run_dir: Path
) -> Preprocessing:
    """Decide what rows go through, and keep it in the run directory.

    Args:
        config: section `data`, and whether the net is Caffe's.
        transforms: what the net itself says.
        manifest: of the prepared data.
        directory: the manifest's.
        run_dir: where mean images of files are kept: a run that is resumed needs the files no more.

    Raises:
        ConfigError: a mean file is missing, something does not fit the rows, or is said twice; the message says how
            to do without.
        DataError: the training rows' mean image cannot be read.
        RunDirError: what was kept is damaged, or it cannot be kept.
    """
    data, shape = config.data, manifest.input.shape
    seen_rows(manifest.rows, data)  # for what it refuses
    # A resumed run may find the mean files gone or changed; what it began with is what it goes on with.
    kept = Preprocessing.load(run_dir)
    states, files = list[Normalise](), list[str]()
    for place, said in enumerate(transforms):
        plain = _plain(data, said, training=place == 0)
        of_rows = Normalise.from_manifest(
            manifest, directory, mean=data.mean or "channel", scale=plain.scale, std=data.std
        )
        file = "" if _rows_say_mean(config) else _mean_file(data, said)
        if _rows_say_mean(config):
            mean = of_rows.mean
        else:
            mean = _kept_mean(kept, place, file=file, shape=shape)
            mean = _named_mean(data, said, shape, remedy=_ROWS_OWN) if mean is None else mean
        std = _named_std(data, shape) if data.std_values else of_rows.std
        states.append(replace(plain, mean=mean, std=std))
        files.append(file)
    made = Preprocessing(train=states[0], test=states[1], mean_files=(files[0], files[1]))
    made.save(run_dir)
    return made


def check_preprocessing(config: RunConfig, transforms: InputTransforms, rows: RowSchema) -> None:
    """Find what `make_preprocessing` would refuse, as far as it can be known before the rows are prepared.

    Args:
        config: of a new run.
        transforms: what the net itself says.
        rows: what the source's rows are.

    Raises:
        ConfigError: a mean file is missing, something does not fit the rows, or is said twice.
    """
    data, shape = config.data, rows.input.shape
    seen_rows(rows, data)
    _named_std(data, shape)
    for place, said in enumerate(transforms):
        _plain(data, said, training=place == 0)
        if not _rows_say_mean(config):
            _named_mean(data, said, shape, remedy=_ROWS_OWN)


def file_normalise(config: RunConfig, transforms: InputTransforms, shape: tuple[int, ...]) -> Normalise:
    """The preprocessing of evaluated rows without a run: what the net says, and the numbers of section `data`.

    Raises:
        ConfigError: `data.mean` or `data.std` asks for training rows, which are not there, a mean file is missing,
            or something does not fit the rows.
    """
    data = config.data
    # Refused and not passed over: numbers of another preprocessing would look like those of a worse net.
    for key, value, remedy in (
        ("data.mean", data.mean, "name a mean_file in the net"),
        ("data.std", data.std, "give data.std_values"),
    ):
        if value not in (None, "none"):
            raise ConfigError(
                f"{key} is {value!r}, which is counted from the training rows, and there is no run here that knows "
                f"it; {remedy}, or test the run's directory: sparknet test RUN_DIR"
            )
    said = transforms[1]
    mean = None if data.mean == "none" else _named_mean(data, said, shape, remedy=_NO_MEAN)
    return replace(_plain(data, said, training=False), mean=mean, std=_named_std(data, shape))


def mean_in_file(said: InputTransform, shape: tuple[int, ...], *, remedy: str = _ROWS_OWN) -> np.ndarray | None:
    """The mean that a net names: a file's image or its values, float32; None where it names none.

    Args:
        said: what the net says.
        shape: of a stored row.
        remedy: how to do without the file, for messages.

    Raises:
        ConfigError: the file is missing or no mean image, or the mean does not fit the rows.
    """
    if said.mean_file:
        return _image_in(said.mean_file, shape, where=f"{said.where}: mean_file", remedy=remedy)
    if not said.mean_values:
        return None
    if len(said.mean_values) not in (1, shape[0]):
        raise ConfigError(
            f"{said.where}: {len(said.mean_values)} mean_value for rows of shape {shape}; give one, or one per "
            "channel"
        )
    return channel_values(said.mean_values, shape)


def _plain(data: Data, said: InputTransform | None, *, training: bool) -> Normalise:
    """All but mean and deviation: what the net says or, where it says nothing, the configuration."""
    if said is not None:
        check_augmentation(said, data)
        # Both scales count: data.scale is 1 unless somebody asks for more than the file does.
        return replace(said.normalise, scale=said.normalise.scale * data.scale)
    return Normalise(
        mean=None,
        scale=data.scale,
        crop=data.crop,
        cut="random" if training and data.crop else "centre",
        mirror=training and data.mirror,
    )


def _rows_say_mean(config: RunConfig) -> bool:
    """The mean is counted from the training rows (or there is none), not named by a file or in numbers."""
    data = config.data
    return data.mean is not None or not (config.net.prototxt or data.mean_values or data.mean_file)


def _mean_file(data: Data, said: InputTransform | None) -> str:
    """The file that `_named_mean` would read; "" for none."""
    if data.mean_file or data.mean_values or said is None:
        return data.mean_file
    return said.mean_file


def _kept_mean(kept: Preprocessing | None, place: int, *, file: str, shape: tuple[int, ...]) -> np.ndarray | None:
    """What the run has kept of a mean file; None if that was another one, or of other rows."""
    # None is of a run directory that did not tell the file: then its mean is taken to be the one.
    if kept is None or not file or kept.mean_files[place] not in (None, file):
        return None
    mean = (kept.train, kept.test)[place].mean
    return mean if mean is not None and mean.shape == shape else None


def _named_mean(
    data: Data, said: InputTransform | None, shape: tuple[int, ...], *, remedy: str
) -> np.ndarray | None:
    """The mean that the configuration names, else the net, float32."""
    # What the configuration says wins: it is how a net is used without its mean file.
    if data.mean_values:
        return _fitting("data.mean_values", data.mean_values, shape)
    if data.mean_file:
        return _image_in(data.mean_file, shape, where="data.mean_file", remedy=remedy)
    return None if said is None else mean_in_file(said, shape, remedy=remedy)


def _named_std(data: Data, shape: tuple[int, ...]) -> np.ndarray | None:
    return _fitting("data.std_values", data.std_values, shape) if data.std_values else None


def _fitting(key: str, values: Sequence[float], shape: tuple[int, ...]) -> np.ndarray:
    if len(values) not in (1, shape[0]):
        raise ConfigError(
            f"{key} is {list(values)} and the rows have shape {shape}; it must be one number, or {shape[0]}, one "
            f"per channel: set {key}"
        )
    return channel_values(tuple(values), shape)


def _image_in(path: str, shape: tuple[int, ...], *, where: str, remedy: str) -> np.ndarray:
    """A mean image in a file, float32 of `shape`."""
    try:
        mean = _read_npy(path) if path.endswith(".npy") else read_mean(path)
    except NetError as error:
        raise ConfigError(f"{where}: {error}, or {remedy}") from error
    if mean.shape != shape:
        raise ConfigError(
            f"{where} {path} has shape {mean.shape} and the rows have {shape}; they must be equal: give the mean "
            f"of such rows, or {remedy}"
        )
    return mean


def _read_npy(path: str) -> np.ndarray:
    try:
        # An .npy of objects is a pickle, and a pickle may run anything.
        mean: object = np.load(path, allow_pickle=False)
    except OSError as error:
        raise NetError(f"{path} cannot be read: {error.strerror or error}; give a .npy file") from error
    except (ValueError, EOFError) as error:
        raise NetError(f"{path} is no array, or a damaged one: {error}; give a .npy file") from error
    if not isinstance(mean, np.ndarray) or mean.dtype.kind not in "fiu":
        found = mean.dtype if isinstance(mean, np.ndarray) else type(mean).__name__
        raise NetError(f"{path} holds {found}; a mean image is an array of numbers: give such a .npy file")
    return mean.astype(np.float32)


def _under(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
