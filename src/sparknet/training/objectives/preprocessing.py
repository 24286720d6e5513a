"""The preprocessing of a run, for training rows and for evaluated ones: made once on the driver, then data.

A Caffe net's data layers say it (`transform_param`), each phase for itself; for other nets the configuration does:
training rows are cut at random and mirrored, evaluated ones cut in the middle. Mean and deviation can be set in the
configuration for both kinds.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from sparknet.caffe.weights.mean_image import read_mean
from sparknet.config import Data, DataColumn, RunConfig
from sparknet.data.loading.transform import Normalise, channel_values
from sparknet.data.rows.columns import Column
from sparknet.data.rows.row_schema import RowSchema
from sparknet.data.shards.manifest import StoredColumn
from sparknet.data.storage.place import Place
from sparknet.errors import ConfigError, DataError, NetError, RunDirError
from sparknet.training.objectives.input_binding import check_augmentation, seen_rows
from sparknet.training.objectives.objective import InputTransform, InputTransforms, Objective
from sparknet.whole_files import whole_file

__all__ = [
    "Chain",
    "Preprocessing",
    "chain_arrays",
    "chain_from",
    "check_preprocessing",
    "file_preprocessing",
    "make_preprocessing",
    "mean_in_file",
]

_FILE = "preprocess.safetensors"
_AS_IT_IS = DataColumn()
_OF_NUMBERS = ("mean", "mean_values", "mean_file", "scale", "std", "std_values", "crop", "mirror")
"""What is done to numbers on their way to the net."""
_ROWS_OWN = "--set data.mean=image takes the training rows' own mean image instead"
_NO_MEAN = "--set data.mean=none takes none off"


Chain = dict[str, Normalise]
"""By column what its stored values go through; other columns reach the net as they are stored."""


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class Preprocessing:
    """What rows go through on their way to the net."""

    train: Chain
    test: Chain
    mean_files: dict[str, str] = field(default_factory=dict[str, str])
    """By state and column (`train.image`) the file that the mean comes from; "" for none."""
    tests: dict[str, Chain] = field(default_factory=dict[str, Chain])
    """By name what further rows go through that are measured."""

    @property
    def evaluated(self) -> dict[str, Chain]:
        """By name what rows that are measured go through; the held-out ones have none."""
        return {"": self.test, **self.tests}

    def save(self, run_dir: Path) -> None:
        """Keep it, so that a resumed run needs none of the files that it was made from.

        Raises:
            RunDirError: it cannot be written.
        """
        arrays = chain_arrays(self.train, "train.") | chain_arrays(self.test, "test.")
        for name, chain in self.tests.items():
            # A tab, since names may have dots.
            arrays |= chain_arrays(chain, f"tests.{name}\t")
        try:
            with whole_file(run_dir / _FILE) as draft:
                # safetensors writes an unreadable header where there is metadata and no tensor.
                save_file(arrays, draft, metadata=self.mean_files if arrays else None)
        except (OSError, SafetensorError) as error:
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
            with safe_open(path, framework="np") as file:
                told: dict[str, str] = file.metadata() or {}
            train, test = (chain_from(_under(arrays, state)) for state in ("train.", "test."))
            further = _under(arrays, "tests.")
            names = dict.fromkeys(key.partition("\t")[0] for key in further)
            tests = {name: chain_from(_under(further, f"{name}\t")) for name in names}
        except (OSError, SafetensorError, DataError) as error:
            raise RunDirError(f"{path} is damaged: {error}; delete it, then resume the run") from error
        return cls(train=train, test=test, mean_files=told, tests=tests)


def chain_arrays(chain: Chain, prefix: str = "") -> dict[str, np.ndarray]:
    """Everything needed to make a chain again, as arrays for a file: `<prefix><column>/<what>`."""
    return {
        # Not ascontiguousarray, which would make the scale one-dimensional.
        f"{prefix}{column}/{name}": np.asarray(array, order="C")
        for column, normalise in chain.items()
        for name, array in normalise.to_arrays().items()
    }


def chain_from(arrays: Mapping[str, np.ndarray]) -> Chain:
    """Make what `chain_arrays` described.

    Raises:
        DataError: the arrays are not such.
    """
    # The last slash: a column's name may hold others.
    columns = dict.fromkeys(name.rpartition("/")[0] for name in arrays)
    return {column: Normalise.from_arrays(_under(arrays, f"{column}/")) for column in columns}


def make_preprocessing(
    config: RunConfig,
    objective: Objective | None,
    stored: Mapping[str, tuple[StoredColumn, Path | Place]],
    *,
    rows: RowSchema,
    run_dir: Path,
) -> Preprocessing:
    """Decide what rows go through, and keep it in the run directory.

    Args:
        config: section `data`, and whether the net is Caffe's.
        objective: what the net itself says; None: one that says nothing.
        stored: by column what was counted of it, and the directory of its manifest.
        rows: what is stored.
        run_dir: where mean images of files are kept: a run that is resumed needs the files no more.

    Raises:
        ConfigError: a mean file is missing, something does not fit the rows, or is said twice; the message says how
            to do without.
        DataError: the training rows' mean image cannot be read.
        RunDirError: what was kept is damaged, or it cannot be kept.
    """
    _check_rows(rows, config.data)
    # A resumed run may find the mean files gone or changed; what it began with is what it goes on with.
    kept = Preprocessing.load(run_dir)
    files: dict[str, str] = {}

    def chain_of(state: str, said_by: InputTransforms, *, before: Chain | None) -> Chain:
        chain: Chain = {}
        place = 0 if state == "train" else 1
        for column in _preprocessed(rows, config.data, said_by):
            said, settings = _said(said_by, column.name, place), _Settings.of(config, column)
            key = f"{state}.{column.name}"
            files[key] = "" if settings.rows_say_mean else settings.mean_file(said)
            known = kept is not None and kept.mean_files.get(key) == files[key] != ""
            mean = _kept_mean(before, column) if known else None
            if mean is None and not settings.rows_say_mean:
                mean = settings.named_mean(said, remedy=_ROWS_OWN)
            made = settings.normalise(said, training=place == 0, rows=stored[column.name], mean=mean)
            _check_cut(made, column, said_by_rows=stored[column.name][0].several, key=settings.key)
            chain[column.name] = made
        return chain

    own: InputTransforms = objective.transforms if objective else {}
    judges = objective.judges if objective else {}
    tests: dict[str, Chain] = {}
    for name in config.data.tests:
        said_by = judges[name].transforms if name in judges else own
        tests[name] = chain_of(f"tests.{name}", said_by, before=kept.tests.get(name) if kept else None)
    made = Preprocessing(
        train=chain_of("train", own, before=kept and kept.train),
        test=chain_of("test", own, before=kept and kept.test),
        tests=tests,
        mean_files=files,
    )
    made.save(run_dir)
    return made


def check_preprocessing(config: RunConfig, objective: Objective | None, rows: RowSchema) -> None:
    """Find what `make_preprocessing` would refuse, as far as it can be known before the rows are prepared.

    Args:
        config: of a new run.
        objective: what the net itself says; None: one that says nothing.
        rows: what the source's rows are.

    Raises:
        ConfigError: a mean file is missing, something does not fit the rows, or is said twice.
    """
    _check_rows(rows, config.data)
    said_by: list[InputTransforms] = [{}]
    if objective is not None:
        said_by = [objective.transforms, *(judge.transforms for judge in objective.judges.values())]
    for transforms in said_by:
        for column in _preprocessed(rows, config.data, transforms):
            settings = _Settings.of(config, column)
            settings.named_std()
            for place in (0, 1):
                said = _said(transforms, column.name, place)
                settings.plain(said, training=place == 0)
                if not settings.rows_say_mean:
                    settings.named_mean(said, remedy=_ROWS_OWN)


def file_preprocessing(config: RunConfig, transforms: InputTransforms, rows: RowSchema) -> Chain:
    """The preprocessing of evaluated rows without a run: what the net says, and the numbers of section `data`.

    Raises:
        ConfigError: a mean or deviation asks for training rows, which are not there, a mean file is missing, or
            something does not fit the rows.
    """
    chain: Chain = {}
    for column in _preprocessed(rows, config.data, transforms):
        settings, said = _Settings.of(config, column), _said(transforms, column.name, 1)
        # Refused and not passed over: numbers of another preprocessing would look like those of a worse net.
        for name, value, remedy in (
            ("mean", settings.rule.mean, "name a mean_file in the net"),
            ("std", settings.rule.std, f"give {settings.key('std_values')}"),
        ):
            if value not in (None, "none"):
                raise ConfigError(
                    f"{settings.key(name)} is {value!r}, which is counted from the training rows, and there is no "
                    f"run here that knows it; {remedy}, or test the run's directory: sparknet test RUN_DIR"
                )
        mean = None if settings.rule.mean == "none" else settings.named_mean(said, remedy=_NO_MEAN)
        chain[column.name] = replace(settings.plain(said, training=False), mean=mean, std=settings.named_std())
    return chain


def _check_rows(rows: RowSchema, data: Data) -> None:
    """Refuse settings that these columns cannot follow: passed over, they would be believed to count.

    Raises:
        ConfigError: naming the setting and the column.
    """
    seen_rows(rows, data)
    for column in rows.columns:
        rule, short = data.column(column.name), column.name not in data.columns
        key = "data" if short else f"data.columns.{column.name}"
        given = [name for name in _OF_NUMBERS if getattr(rule, name) not in (getattr(_AS_IT_IS, name), "none")]
        if given and (column.dtype == "int64" or not column.shape):
            what = "whole numbers" if column.dtype == "int64" else "single numbers of a target"
            raise ConfigError(
                f"{key}.{given[0]} is {getattr(rule, given[0])!r}, and column {column.name} holds {what}, which "
                f"are taken as they are: leave {key}.{given[0]} out"
            )
        if rule.length is not None and column.shape != (rule.length,):
            raise ConfigError(
                f"{key}.length is {rule.length}, and column {column.name} holds no lists: leave {key}.length out"
            )
        if rule.resize and column.shape[1:] != tuple(rule.resize):
            raise ConfigError(
                f"{key}.resize is {list(rule.resize)}, and column {column.name} holds numbers of shape "
                f"{list(column.shape)}; encoded images alone are resized: leave {key}.resize out"
            )
        if rule.keep == "encoded" and column.image is None:
            raise ConfigError(
                f'{key}.keep is "encoded", and column {column.name} holds no encoded images: leave {key}.keep out'
            )


def _check_cut(normalise: Normalise, column: Column, *, said_by_rows: str, key: Callable[[str], str]) -> None:
    """Refuse images of several sizes of which no square is cut.

    Raises:
        ConfigError: naming two of them.
    """
    if column.own_size and not normalise.crop:
        raise ConfigError(
            f"column {column.name}: {said_by_rows}, and no square is cut out of them: set {key('crop')} or "
            f"{key('resize')}, or in a Caffe net crop_size in both phases"
        )


def _preprocessed(rows: RowSchema, data: Data, transforms: InputTransforms) -> list[Column]:
    """The columns that go through something: inputs of numbers, and targets of which that is said."""
    inputs = {column.name for column in rows.inputs}
    return [
        column
        for column in rows.columns
        if column.dtype != "int64"
        and column.shape
        and (
            column.name in inputs
            or column.name in transforms
            or data.columns.get(column.name, _AS_IT_IS) != _AS_IT_IS
        )
    ]


def _said(transforms: InputTransforms, name: str, place: int) -> InputTransform | None:
    return transforms[name][place] if name in transforms else None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Settings:
    """What the configuration says of one column."""

    column: Column
    rule: DataColumn
    short: bool
    """The section's own keys say it, not a table of the column's."""
    caffe: bool
    """The net is a Caffe file, whose data layers say what they do."""

    @classmethod
    def of(cls, config: RunConfig, column: Column) -> "_Settings":
        data, name = config.data, column.name
        caffe = bool(config.net.prototxt)
        return cls(column=column, rule=data.column(name), short=name not in data.columns, caffe=caffe)

    def key(self, name: str) -> str:
        """The key that says it, for messages."""
        return f"data.{name}" if self.short else f"data.columns.{self.column.name}.{name}"

    @property
    def rows_say_mean(self) -> bool:
        """The mean is counted from the training rows (or there is none), not named by a file or in numbers."""
        rule = self.rule
        return rule.mean is not None or not (self.caffe or rule.mean_values or rule.mean_file)

    @property
    def default_mean(self) -> Literal["none", "channel"]:
        """What is taken off where nothing is said: of images, and of the only input in the short form, the mean."""
        return "channel" if self.short or len(self.column.shape) == 3 else "none"

    def mean_file(self, said: InputTransform | None) -> str:
        """The file that `named_mean` would read; "" for none."""
        rule = self.rule
        if rule.mean_file or rule.mean_values or said is None:
            return rule.mean_file
        return said.mean_file

    def named_mean(self, said: InputTransform | None, *, remedy: str) -> np.ndarray | None:
        """The mean that the configuration names, else the net, float32."""
        rule, shape = self.rule, self.column.shape
        # What the configuration says wins: it is how a net is used without its mean file.
        if rule.mean_values:
            return _fitting(self.key("mean_values"), rule.mean_values, shape)
        if rule.mean_file:
            return _image_in(rule.mean_file, shape, where=self.key("mean_file"), remedy=remedy)
        return None if said is None else mean_in_file(said, shape, remedy=remedy)

    def named_std(self) -> np.ndarray | None:
        """The deviation that the configuration gives in numbers, float32."""
        rule = self.rule
        return _fitting(self.key("std_values"), rule.std_values, self.column.shape) if rule.std_values else None

    def plain(self, said: InputTransform | None, *, training: bool) -> Normalise:
        """All but mean and deviation: what the net says or, where it says nothing, the configuration."""
        rule = self.rule
        if said is not None:
            check_augmentation(said, rule, key=self.key)
            # Both scales count: the configuration's is 1 unless somebody asks for more than the file does.
            return replace(said.normalise, scale=said.normalise.scale * rule.scale)
        return Normalise(
            mean=None,
            scale=rule.scale,
            crop=rule.crop,
            cut="random" if training and rule.crop else "centre",
            mirror=training and rule.mirror,
        )

    def normalise(
        self,
        said: InputTransform | None,
        *,
        training: bool,
        rows: tuple[StoredColumn, Path | Place],
        mean: np.ndarray | None,
    ) -> Normalise:
        """All of it; `mean` is the one that was named."""
        rule, plain = self.rule, self.plain(said, training=training)
        # In a Caffe run the data layers say all there is, unless the configuration asks for the rows' own.
        default = "none" if self.caffe else self.default_mean
        counted = Normalise.of_rows(*rows, mean=rule.mean or default, scale=plain.scale, std=rule.std)
        std = self.named_std() if rule.std_values else counted.std
        return replace(plain, mean=counted.mean if self.rows_say_mean else mean, std=std)


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
        middle = said.takes_middle
        return _image_in(said.mean_file, shape, where=f"{said.where}: mean_file", remedy=remedy, middle=middle)
    if not said.mean_values:
        return None
    if len(said.mean_values) not in (1, shape[0]):
        raise ConfigError(
            f"{said.where}: {len(said.mean_values)} mean_value for rows of shape {shape}; give one, or one per "
            "channel"
        )
    return channel_values(said.mean_values, shape)


def _kept_mean(chain: Chain | None, column: Column) -> np.ndarray | None:
    """What a run has kept of a mean file; None if it is of other rows."""
    mean = chain[column.name].mean if chain and column.name in chain else None
    return mean if mean is not None and mean.shape == column.shape else None


def _fitting(key: str, values: Sequence[float], shape: tuple[int, ...]) -> np.ndarray:
    if len(values) not in (1, shape[0]):
        raise ConfigError(
            f"{key} is {list(values)} and the rows have shape {shape}; it must be one number, or {shape[0]}, one "
            f"per channel: set {key}"
        )
    return channel_values(tuple(values), shape)


def _image_in(path: str, shape: tuple[int, ...], *, where: str, remedy: str, middle: bool = False) -> np.ndarray:
    """A mean image in a file, float32 of `shape`; its middle, where it may be larger."""
    try:
        mean = _read_npy(path) if path.endswith(".npy") else read_mean(path)
    except NetError as error:
        raise ConfigError(f"{where}: {error}, or {remedy}") from error
    if middle and len(mean.shape) == len(shape) == 3:
        # window_data_layer.cpp: one offset for both axes, that of the width. What does not fit is refused below.
        offset = (mean.shape[2] - shape[2]) // 2
        cut = mean[:, offset : offset + shape[1], offset : offset + shape[2]]
        mean = np.ascontiguousarray(cut) if offset >= 0 and cut.shape == shape else mean
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
