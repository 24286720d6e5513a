"""The columns that an inference adds: their types in Spark, and their cells as Arrow arrays."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from pyspark.sql.types import ArrayType, DataType, DoubleType, StringType, StructField, StructType
from torch import Tensor

from sparknet.errors import ConfigError, NetError
from sparknet.spark.inference.wanted import Wanted
from sparknet.training.objectives.answer import Answer
from sparknet.training.objectives.loss_arguments import nearest
from sparknet.training.objectives.objective import Objective, Tensors
from sparknet.training.run_files.saved_model import Model

__all__ = ["Output", "Outputs", "check_wanted", "outputs_of"]

_NUMBERS = ArrayType(DoubleType(), containsNull=False)
"""What becomes a vector in Spark: where rows come in columns, as from Parquet, Spark 4.3 takes no function over
Arrow that gives vectors themselves."""
_NUMBERS_IN_ARROW = pa.list_(pa.field("element", pa.float64(), nullable=False))
Says = Literal["prediction", "probability", "raw", "predicted_label", "blob"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Output:
    """One column."""

    name: str
    says: Says
    blob: str = ""
    """Which, of a blob."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outputs:
    """All columns that are added; it travels to the workers."""

    columns: tuple[Output, ...]
    answer: Answer | None
    """How the net's output is read; None where only parts of the net are asked for."""
    values: tuple[float, ...] = ()
    """By class what the label column has in its place; (): the class's number."""
    words: tuple[str, ...] = ()
    """By class its name."""

    @property
    def blobs(self) -> tuple[str, ...]:
        """Parts of the net that are asked for, each once."""
        return tuple(dict.fromkeys(one.blob for one in self.columns if one.says == "blob"))

    def is_vector(self, column: Output) -> bool:
        """Whether the numbers of a column are to become a vector."""
        return self._type(column) == _NUMBERS

    @property
    def schema(self) -> StructType:
        """The columns by number, `f0`, `f1`, …, since names may hold anything."""
        return StructType([StructField(f"f{at}", self._type(one)) for at, one in enumerate(self.columns)])

    def cells(self, made: Tensors, good: np.ndarray) -> Any:
        """The cells of some rows, a struct array of `schema`; null for rows that are no good.

        Args:
            made: what `Objective.infer` gave for the good ones; not looked at where there are none.
            good: which they are, bool [n].
        """
        some, places = bool(good.any()), np.maximum(np.cumsum(good) - 1, 0)
        arrays: list[Any] = []
        for column in self.columns:
            array = self._array(column, made) if some else self._nothing(column, len(good))
            # Below a null anything may stand but a null, which parts of a vector cannot be.
            arrays.append(array.take(pa.array(places)) if some and not good.all() else array)
        fields = [pa.field(f"f{at}", array.type) for at, array in enumerate(arrays)]
        return pa.StructArray.from_arrays(arrays, fields=fields, mask=None if good.all() else pa.array(~good))

    def _type(self, column: Output) -> DataType:
        several = self.answer is not None and self.answer.several
        if column.says == "prediction":
            return ArrayType(DoubleType()) if several else DoubleType()
        if column.says == "predicted_label":
            return ArrayType(StringType()) if several else StringType()
        return _NUMBERS

    def _array(self, column: Output, made: Tensors) -> Any:
        if column.says == "blob":
            return _vectors(_numbers(made[column.blob]))
        if column.says == "raw":
            return _vectors(self._raw(_numbers(made[""])))
        assert self.answer is not None, "the columns ask for it"
        if column.says == "probability":
            return _vectors(_numbers(self.answer.probability(made[""])))
        found = _numbers(self.answer.prediction(made[""]))
        if column.says == "predicted_label":
            known = pa.array(self.words)
            return _spread(_places(found, self.words), lambda flat: known.take(pa.array(flat)))
        if self.values:
            found = np.array(self.values)[_places(found, self.values)]
        return _spread(found, pa.array)

    def _raw(self, found: np.ndarray) -> np.ndarray:
        """The output as it is; of a single score for what is true or not both places that pyspark.ml has."""
        answer = self.answer
        single = answer is not None and answer.kind == "logits" and not answer.several
        found = found.reshape(len(found), -1)
        return np.concatenate([-found, found], 1) if single else found

    def _nothing(self, column: Output, rows: int) -> Any:
        """Cells that nobody reads."""
        kind = self._type(column)
        if kind == _NUMBERS:
            return _vectors(np.zeros((rows, 0)))
        text = column.says == "predicted_label"
        flat = np.zeros((rows, 0) if isinstance(kind, ArrayType) else rows)
        return _spread(flat, lambda values: pa.array(values.astype(str) if text else values))


def outputs_of(wanted: Wanted, model: Model) -> Outputs:
    """Hold the columns that are asked for against a model.

    Raises:
        ConfigError: none is asked for, two have one name, or the model has not what one of them says.
        NetError: there is no such blob, or the net's output cannot be read.
    """
    named: Mapping[Says, str] = {
        "raw": wanted.raw,
        "probability": wanted.probability,
        "prediction": wanted.prediction,
        "predicted_label": wanted.predicted_label,
    }
    columns = [Output(name=name, says=says) for says, name in named.items() if name]
    columns += [Output(name=column, says="blob", blob=blob) for blob, column in wanted.blobs.items() if column]
    _check_names([column.name for column in columns])
    _check_blobs(model.objective, [column.blob for column in columns if column.says == "blob"])
    read = [column for column in columns if column.says not in ("raw", "blob")]
    answer = model.objective.answer() if read else None
    values, words = _names_of(model)
    if answer is not None and answer.kind == "numbers":
        for column in read:
            if column.says != "prediction":
                raise ConfigError(
                    f"{column.says} is {column.name!r}, and the model gives numbers, which have none: leave "
                    f"{column.says} out"
                )
        values, words = (), ()
    if wanted.predicted_label and not words:
        raise ConfigError(
            f"predicted_label is {wanted.predicted_label!r}, and the classes of the model have no names: leave "
            "predicted_label out, the prediction is the class itself"
        )
    return Outputs(columns=tuple(columns), answer=answer, values=values, words=words)


def check_wanted(wanted: Wanted, model: Model) -> None:
    """Find what `infer` would refuse of the columns that are asked for, before there are rows.

    Raises:
        ConfigError, NetError: as `infer` has it.
    """
    outputs_of(wanted, model)


def _check_names(names: Sequence[str]) -> None:
    if not names:
        raise ConfigError(
            "no column is asked for; an inference adds at least one: name prediction, probability, raw, "
            "predicted_label or blobs"
        )
    small = [name.lower() for name in names]
    twice = sorted({name for name in names if small.count(name.lower()) > 1})
    if twice:
        raise ConfigError(
            f"the columns {' and '.join(twice)} are one to Spark, which tells no case of letters: name each of "
            "the columns that are added differently"
        )


def _check_blobs(objective: Objective, blobs: Sequence[str]) -> None:
    known = list(objective.blobs)
    for blob in blobs:
        if blob not in known:
            raise NetError(
                f"net {objective.name} has no blob {blob!r}: {nearest(blob, known)} Name one of those "
                f"that it has: {', '.join(known)}"
            )


def _names_of(model: Model) -> tuple[tuple[float, ...], tuple[str, ...]]:
    """By class the number in the label column and the name, where there are such."""
    rows, table = model.description.rows, model.description.table
    category = table.categories.get(rows.label.name) if table is not None else None
    if category is None:
        return (), rows.class_names
    return tuple(float(value) for value in category.values), category.words or rows.class_names


def _places(classes: np.ndarray, known: Sequence[object]) -> np.ndarray:
    """Numbers of classes, to look their names up."""
    places = classes.astype(np.int64)
    if places.size and int(places.max()) >= len(known):
        raise NetError(
            f"the net takes a row for class {int(places.max())}, and the training rows had {len(known)} classes, "
            "so that it has no name: let the net have as many outputs as there are classes"
        )
    return places


def _numbers(values: Tensor) -> np.ndarray:
    """[n] or [n, m] in float64."""
    flat = values.flatten(1) if values.dim() > 1 else values
    return flat.double().cpu().numpy()


def _vectors(values: np.ndarray) -> Any:
    """Rows of numbers, [n, m] or [n], as lists."""
    return _lists(values if values.ndim > 1 else values[:, None], pa.array, _NUMBERS_IN_ARROW)


def _spread(values: np.ndarray, make: Callable[[np.ndarray], Any]) -> Any:
    """A cell of each row, or of rows of several a list."""
    return make(values) if values.ndim == 1 else _lists(values, make)


def _lists(values: np.ndarray, make: Callable[[np.ndarray], Any], kind: Any = None) -> Any:
    """Rows of one length, [n, m], as lists."""
    offsets = np.arange(len(values) + 1, dtype=np.int32) * np.int32(values.shape[1])
    flat = make(np.ascontiguousarray(values).reshape(-1))
    return pa.ListArray.from_arrays(pa.array(offsets), flat, type=kind)
