"""What a column of a DataFrame holds, and its cells in the few types that training knows."""

from dataclasses import dataclass
from typing import Literal

from pyspark.sql import Column as SparkColumn
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import (
    ArrayType,
    BinaryType,
    BooleanType,
    CharType,
    DataType,
    FloatType,
    IntegralType,
    LongType,
    NumericType,
    StringType,
    StructType,
    UserDefinedType,
    VarcharType,
)

from sparknet.errors import DataError

__all__ = [
    "FAULT",
    "Checked",
    "Kind",
    "as_nested_numbers",
    "as_number",
    "as_numbers",
    "as_whole_numbers",
    "as_word",
    "checked",
    "find_column",
    "is_whole",
    "kind_of",
    "row_name",
]

Kind = Literal["bytes", "image", "numbers", "number", "word", "other"]
"""Binary, Spark's struct of an image, a vector or (nested) array of numbers, one number or boolean, a word, or what
cannot be used."""
FAULT = "sparknet: what is wrong with the row"
"""A column of ours beside a source's own, with a name that no table has."""
# Without `origin`, which nothing here reads and which may have been dropped on the way.
_IMAGE_FIELDS = {"height", "width", "nChannels", "mode", "data"}
_ROW_BITS = 33  # monotonically_increasing_id has the partition above these


def find_column(frame: DataFrame, name: str, *, key: str) -> tuple[SparkColumn, DataType]:
    """The column `name`, which may hold dots and quotes, and its type.

    Args:
        frame: the rows.
        name: the column.
        key: the setting that names it, for the message ("image").

    Raises:
        DataError: there is no such column, or several.
    """
    names = [one for one in frame.columns if one != FAULT]
    # A join can leave two columns of one name, which Spark complains of only where one is used, in words of its
    # own.
    times = names.count(name)
    if times != 1:
        has = "is not" if not times else f"is {times} times"
        raise DataError(f"column {name} {has} in the data, which has {', '.join(names)}: set data.{key}")
    alike = [one for one in names if one.lower() == name.lower()]
    if len(alike) > 1 and frame.sparkSession.conf.get("spark.sql.caseSensitive") != "true":
        raise DataError(
            f"columns {' and '.join(alike)} differ in the case of letters alone, which Spark does not tell apart: "
            "rename one, or set spark.sql.caseSensitive to true"
        )
    # In backticks, since Spark takes a dot in a bare name for a field of a struct.
    quoted = name.replace("`", "``")
    return F.col(f"`{quoted}`"), frame.schema[name].dataType


def kind_of(kind: DataType) -> Kind:
    """What the cells of a column of this type are."""
    if isinstance(kind, BinaryType):
        return "bytes"
    if isinstance(kind, StructType) and set(kind.names) >= _IMAGE_FIELDS:
        return "image"
    # Old vectors too: tables saved by spark.mllib's time still have them, and `vector_to_array` takes both.
    if _is_vector(kind) or (isinstance(kind, ArrayType) and _is_number(_innermost(kind))):
        return "numbers"
    if _is_number(kind):
        return "number"
    if isinstance(kind, StringType | CharType | VarcharType):
        return "word"
    return "other"


def as_number(column: SparkColumn) -> SparkColumn:
    """A number or boolean as float."""
    return column.cast(FloatType())


def as_numbers(column: SparkColumn, kind: DataType) -> SparkColumn:
    """A vector, dense or sparse, or an array, nested or not, as array<float> of all its numbers in order."""
    if not isinstance(kind, ArrayType):
        # A user-defined type has no cast, and a sparse vector's own fields hold its indices. Imported here, since
        # Spark's library of models brings pandas with it, and few tables have vectors.
        from pyspark.ml.functions import vector_to_array

        # Spark's function does not look whether there is a vector.
        return F.when(column.isNotNull(), vector_to_array(column, "float32"))
    while isinstance(kind.elementType, ArrayType):
        column, kind = F.flatten(column), kind.elementType
    return column.cast(ArrayType(FloatType()))


def as_nested_numbers(column: SparkColumn, kind: DataType) -> SparkColumn:
    """A vector as array<float>, or an array of numbers with its nesting, whose lists can so be held to a shape."""
    return column.cast(_floats(kind)) if isinstance(kind, ArrayType) else as_numbers(column, kind)


def as_whole_numbers(column: SparkColumn, kind: DataType) -> SparkColumn:
    """An array of whole numbers with its nesting, as bigint."""
    return column.cast(_bigints(kind))


def is_whole(kind: DataType) -> bool:
    """Tell whether a number, or each number in an array, is an integer or a boolean."""
    return isinstance(_innermost(kind), IntegralType | BooleanType)


def as_word(column: SparkColumn) -> SparkColumn:
    """A text, number or boolean as a word without spaces around it."""
    # Many tables have a space behind each comma (UCI's do); it would make two words of one.
    return F.trim(column.cast("string"))


def row_name(row: SparkColumn) -> SparkColumn:
    """Name a row for a message; `row` is what monotonically_increasing_id gave it."""
    # Split by Spark's layout of these ids, so that a message names a row that can be looked up.
    number = row.bitwiseAND(F.lit((1 << _ROW_BITS) - 1))
    parts = (F.lit("row "), number, F.lit(" of partition "), F.shiftright(row, _ROW_BITS))
    return F.concat(*(part.cast("string") for part in parts))


@dataclass(frozen=True, kw_only=True, slots=True)
class Checked:
    """Cells with what is wrong with them, row by row."""

    cells: SparkColumn
    """Null where the row is at fault."""
    fault: SparkColumn
    """What is wrong, in words; null where nothing is.

    It is a column, not an exception of the query's: Spark would try a task that raises again, as often as it allows
    any, and then tell of it in sixty lines."""


def checked(value: SparkColumn, holds: SparkColumn, *message: SparkColumn | str) -> Checked:
    """`value` where `holds` is true; where it is false or null, what `message` says.

    Args:
        value: the cells.
        holds: what must be true of them.
        message: in pieces, none of which may be null.
    """
    pieces = [piece if isinstance(piece, SparkColumn) else F.lit(piece) for piece in message]
    # SQL knows three truths: what is null is neither good nor, negated, bad, and the row would be told of by
    # nobody.
    good = F.coalesce(holds, F.lit(False))
    return Checked(cells=F.when(good, value), fault=F.when(~good, F.concat(*pieces)))


def _floats(kind: DataType) -> DataType:
    return ArrayType(_floats(kind.elementType)) if isinstance(kind, ArrayType) else FloatType()


def _bigints(kind: DataType) -> DataType:
    return ArrayType(_bigints(kind.elementType)) if isinstance(kind, ArrayType) else LongType()


def _innermost(kind: DataType) -> DataType:
    while isinstance(kind, ArrayType):
        kind = kind.elementType
    return kind


def _is_vector(kind: DataType) -> bool:
    """A vector of Spark's own, of the package ml or of mllib before it."""
    return isinstance(kind, UserDefinedType) and kind.simpleString() == "vector"


def _is_number(kind: DataType) -> bool:
    return isinstance(kind, NumericType | BooleanType)
