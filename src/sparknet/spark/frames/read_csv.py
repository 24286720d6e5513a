"""CSV as people write it: what separates the values, whether the first line is names, what each column holds."""

import csv
import functools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute
from pyspark.sql import Column, DataFrame, DataFrameReader, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StringType, StructField, StructType

from sparknet.config import Data, decode, encode
from sparknet.data.sources.files import local_path
from sparknet.data.storage.local_files import is_file_uri
from sparknet.errors import DataError
from sparknet.spark.frames.column_kinds import FAULT, checked
from sparknet.spark.jobs.jobs import collect_reports

__all__ = ["look_at_lines", "read_csv"]

# Its functions are made when it is imported, where no checker of types sees them.
pc: Any = pyarrow.compute
_SEPARATORS = ("\t", ";", "|", ",")
"""Those that are looked for. The comma last: where another cuts every line alike, commas are part of the values."""
_ALIKE = 0.9
"""Share of the lines that a separator must cut into as many values."""
_SAMPLE_LINES = 100
_MOST_SHOWN = 80
"""Characters of a line in a message."""
_NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"
_WHOLE = r"^[+-]?\d{1,18}$"
_DECIMAL_COMMA = r"^[+-]?(\d{1,3}(\.\d{3})+|\d+),\d+$"
_FEW_WORDS = 3
"""Different words among twice as many numbers or more are a mistake, and more of either are meant as words."""
# Endings by which Hadoop chooses a codec.
_COMPRESSED = (".gz", ".bz2", ".zst", ".xz", ".lz4", ".snappy", ".deflate")


def read_csv(spark: SparkSession, path: str, data: Data, *, tell: Callable[[str], None]) -> DataFrame:
    """Read lines as RFC 4180 has them; one with fewer or more values than the others is told of in `FAULT`.

    A column is bigint, double or boolean where all its values are, else string. Columns of numbers have null for
    what `data.nulls` names.

    Args:
        spark: the session.
        path: as Spark takes it.
        data: how it is read, and which columns are used.
        tell: is told what was found and not said: the separator, that there are no names, words taken for null.

    Raises:
        DataError: there are no rows, files name other columns, or a column that is used has a few words among
            numbers, or decimal commas.
    """
    form = _form_of(spark, path, data, tell)
    names = form.read(spark).csv(path).columns
    if form.header:
        _check_headers(form.read(spark).csv(path).inputFiles())
    strange = "sparknet: malformed line"  # no table has such a name
    schema = StructType([StructField(name, StringType()) for name in (*names, strange)])
    # Without pruning, which would look at no more of a line than the columns that somebody asks for.
    reader = form.read(spark, columnNameOfCorruptRecord=strange, columnPruning="false")
    lines = reader.schema(schema).csv(path)
    line = _column(strange)
    seen = _survey(lines.where(line.isNull()).select(*map(_column, names)), names, data)
    found = dict(zip(names, seen, strict=True))
    typed = [_typed(lines, name, seen, data, form, tell).alias(name) for name, seen in found.items()]
    # Spark refuses to read this column alone, as counting rows would: no letter of the first one is asked for too.
    said = (f"{data.path}: the line '", F.substring(line, 1, _MOST_SHOWN), F.substring(_column(names[0]), 1, 0))
    remedy = f"put values with {form.told} in quotes, or remove the line"
    rule = f"' has not {len(names)} values as the first one has: {remedy}"
    return lines.select(*typed, checked(line, line.isNull(), *said, rule).fault.alias(FAULT))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Form:
    """How the lines are written."""

    separator: str
    quote: str
    header: bool

    @property
    def told(self) -> str:
        """The separator in words."""
        return {",": "a comma", ";": "a semicolon", "\t": "a tab", "|": "a bar"}.get(self.separator, self.separator)

    def read(self, spark: SparkSession, **options: str) -> DataFrameReader:
        """Spark's reader of such lines."""
        reader = spark.read.options(ignoreLeadingWhiteSpace=True, ignoreTrailingWhiteSpace=True, header=self.header)
        # Spark's own escape is a backslash, and a doubled quote before a comma would end the value.
        return reader.options(sep=self.separator, quote=self.quote, escape=self.quote, **options)

    def rows(self, lines: Sequence[str]) -> list[list[str]]:
        """The values of lines."""
        # A quote that nobody closes takes all that follows, as it does for Spark.
        return [[cell.strip() for cell in row] for row in self._reader(lines) if row]

    def line_of(self, file: str, at: int, word: str) -> int | None:
        """The number, from 1 on, of the first line of a local file whose value in column `at` is `word`."""
        with local_path(file).open(encoding="utf-8-sig", errors="replace", newline="") as lines:
            reader = self._reader(lines)
            return next((reader.line_num for row in reader if len(row) > at and row[at].strip() == word), None)

    def _reader(self, lines: Any) -> Any:
        return csv.reader(lines, delimiter=self.separator, quotechar=self.quote, skipinitialspace=True)


def _form_of(spark: SparkSession, path: str, data: Data, tell: Callable[[str], None]) -> _Form:
    """How the lines of the first file are written, as the settings say or else these lines."""
    text = spark.read.text(path).select("value", "_metadata.file_path").where(F.length(F.trim("value")) > 0)
    sample = text.limit(_SAMPLE_LINES).collect()
    if not sample:
        raise DataError(f"{data.path}: the file is empty; training needs rows: correct data.path")
    # Another file would begin with another line of names.
    lines = [row.value for row in sample if row.file_path == sample[0].file_path]
    separator = data.separator or _separator(lines, data.quote)
    form = _Form(separator=separator, quote=data.quote, header=True)
    if not data.separator and separator != ",":
        tell(f"{data.path}: {form.told} separates the values; if it is another letter, set data.separator")
    header = data.header if data.header is not None else _names_columns(form.rows(lines))
    if not header and data.header is None:
        tell(
            f"{data.path}: the first line is values and names no columns, so they are _c0, _c1, ...; if it is "
            "names, set data.header=true"
        )
    return _Form(separator=separator, quote=data.quote, header=header)


def _separator(lines: Sequence[str], quote: str) -> str:
    """The letter that cuts most lines into as many values as the first one."""
    alike: dict[str, float] = {}
    for letter in _SEPARATORS:
        widths = [len(row) for row in _Form(separator=letter, quote=quote, header=True).rows(lines)]
        if widths and widths[0] > 1:
            alike[letter] = widths.count(widths[0]) / len(widths)
    fitting = [letter for letter, share in alike.items() if share >= _ALIKE]
    if fitting:
        return fitting[0]
    # Lines of different widths are told of one by one; a comma is what the format is called after.
    return "," if "," in alike else max(alike, key=lambda letter: alike[letter], default=",")


def _names_columns(rows: Sequence[Sequence[str]]) -> bool:
    """Whether the first line is names: it has a word where the others have numbers, or nobody has numbers."""
    first, *rest = rows
    said = [cell for cell in first if cell]
    # As pandas writes an array of which nobody has named the columns.
    if not rest or said == [str(at) for at in range(len(said))]:
        return True
    of_numbers = [at for at in range(len(first)) if _are_numbers([row[at] for row in rest if len(row) > at])]
    return not of_numbers or any(first[at] and not re.match(_NUMBER, first[at]) for at in of_numbers)


def _are_numbers(cells: Sequence[str]) -> bool:
    said = [cell for cell in cells if cell]
    # One may be a mistake, which is told of by its line.
    return bool(said) and sum(bool(re.match(_NUMBER, cell)) for cell in said) >= _ALIKE * len(said)


@dataclass(slots=True)
class _Seen:
    """What a column holds."""

    values: int = 0
    """That are there."""
    numbers: int = 0
    whole: int = 0
    """Numbers that are."""
    flags: int = 0
    """"true" and "false"."""
    commas: int = 0
    """Numbers with a decimal comma."""
    missing: int = 0
    """Words of `data.nulls`."""
    nulls: tuple[str, ...] = ()
    """Which of them."""
    words: tuple[str, ...] = ()
    """Some of the others, sorted."""

    def add(self, other: "_Seen") -> None:
        """Add what another part of the rows holds."""
        for name in ("values", "numbers", "whole", "flags", "commas", "missing"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.nulls = tuple(sorted({*self.nulls, *other.nulls}))
        self.words = tuple(sorted({*self.words, *other.words})[: _FEW_WORDS + 1])


def _survey(cells: DataFrame, names: Sequence[str], data: Data) -> list[_Seen]:
    """What each column holds: one pass over the rows."""
    renamed = cells.toDF(*(f"c{at}" for at in range(len(names))))
    task = functools.partial(look_at_lines, tuple(data.nulls))
    found = [_Seen() for _ in names]
    for report in collect_reports(renamed, task, doing="looking at the columns"):
        for seen, part in zip(found, report.values["columns"], strict=True):
            seen.add(decode(_Seen, part))
    return found


def look_at_lines(nulls: tuple[str, ...], batches: Iterator[pa.RecordBatch]) -> Iterator[dict[str, Any]]:
    """The task: what the columns of its rows hold, as one report; none where there are no rows.

    Args:
        nulls: words that stand for nothing.
        batches: columns of strings.
    """
    found: list[_Seen] = []
    for batch in batches:
        found = found or [_Seen() for _ in batch.columns]
        for seen, column in zip(found, batch.columns, strict=True):
            seen.add(_seen_in(column, nulls))
    if found:
        yield {"columns": [encode(seen) for seen in found]}


def _seen_in(column: Any, nulls: tuple[str, ...]) -> _Seen:
    said = column.drop_null()
    said = said.filter(pc.not_equal(said, ""))
    count = len(said)
    for kind, whole in ((pa.int64(), count), (pa.float64(), 0)):
        try:
            pc.cast(said, kind)
        except pa.ArrowInvalid:
            continue
        # Most columns: all are numbers, which is several times quicker to find out than what each of them is.
        if not pc.any(pc.match_substring_regex(said, "[xXnN]")).as_py():
            return _Seen(values=count, numbers=count, whole=whole)
    missing = pc.is_in(said, pa.array(nulls, said.type))
    numbers, whole, commas, flags = (
        pc.match_substring_regex(said, pattern)
        for pattern in (_NUMBER, _WHOLE, _DECIMAL_COMMA, "^(?i:true|false)$")
    )
    others = said.filter(pc.invert(pc.or_(pc.or_(missing, numbers), commas))).unique().to_pylist()
    return _Seen(
        values=count,
        numbers=_count(numbers),
        whole=_count(whole),
        flags=_count(flags),
        commas=_count(commas),
        missing=_count(missing),
        nulls=tuple(sorted(said.filter(missing).unique().to_pylist())),
        words=tuple(sorted(others)[: _FEW_WORDS + 1]),
    )


def _count(mask: Any) -> int:
    return int(pc.sum(mask).as_py() or 0)


def _typed(
    lines: DataFrame, name: str, seen: _Seen, data: Data, form: _Form, tell: Callable[[str], None]
) -> Column:
    """The cells of a column in the type of what it holds."""
    cells, rest = _column(name), seen.values - seen.missing
    if name in data.words or not rest:
        return cells
    if seen.flags == seen.values:
        return cells.try_cast("boolean")
    if seen.numbers == rest:
        if seen.missing:
            tell(
                f"column {name}: {', '.join(seen.nulls)} in {seen.missing:,} of {seen.values:,} lines, among "
                "numbers, is taken for null; data.nulls says what is"
            )
        # What is named there is no number, so that the cast makes null of it.
        return cells.try_cast("bigint" if seen.whole == rest else "double")
    if _is_used(name, data):
        _check_numbers(lines, name, seen, data, form)
    return cells


def _check_numbers(lines: DataFrame, name: str, seen: _Seen, data: Data, form: _Form) -> None:
    """Refuse what is meant for numbers and is none."""
    rest = seen.values - seen.missing
    if seen.commas and seen.commas + seen.numbers == rest:
        where = _place_of(lines, name, F.regexp_like(_column(name), F.lit(_DECIMAL_COMMA)), form)
        raise DataError(
            f"{where}: column {name} has numbers with a decimal comma; they must have a point: write the file "
            f"anew, or name {name} in data.words if they are words"
        )
    few = len(seen.words) <= _FEW_WORDS and not seen.commas
    if few and seen.numbers >= 2 * (rest - seen.numbers):
        where = _place_of(lines, name, _column(name) == seen.words[0], form)
        raise DataError(
            f"{where}: column {name} has '{seen.words[0][:_MOST_SHOWN]}' among {seen.numbers:,} numbers; a column "
            "holds numbers or words: correct it, name it in data.nulls if it stands for none, or name "
            f"{name} in data.words if all of them are words"
        )


def _is_used(name: str, data: Data) -> bool:
    return name in data.column_names or name in data.features or data.features == ("*",)


def _place_of(lines: DataFrame, name: str, wanted: Column, form: _Form) -> str:
    """File and, of a local one, line of the first row of some file for which this holds."""
    row = lines.where(wanted).select("_metadata.file_path", _column(name).alias("word")).head()
    assert row is not None, "the rows have been counted"
    file = str(row.file_path)
    if not is_file_uri(file) or file.endswith(_COMPRESSED):
        return file
    number = form.line_of(file, lines.columns.index(name), row.word)
    return f"{local_path(file)}" if number is None else f"{local_path(file)}, line {number}"


def _check_headers(files: Sequence[str]) -> None:
    """Hold the first lines of local files against each other; remote and compressed files are not looked at."""
    # Spark takes one file's names for the columns of all, and a first line that is written in another way for a
    # row, which makes words of numbers.
    known: dict[str, str] = {}
    for file in sorted(files):
        if not is_file_uri(file) or file.endswith(_COMPRESSED):
            continue
        # A byte order mark, as spreadsheets write it, is no part of the first name.
        with local_path(file).open(encoding="utf-8-sig", errors="replace") as lines:
            header = next((line.rstrip("\n") for line in lines if line.strip()), "")
        if header:
            # Byte for byte: another order of the same names would put values under the wrong ones just as well.
            known.setdefault(header, file)
        if len(known) > 1:
            (theirs, first), (ours, _) = known.items()
            raise DataError(
                f"{file}: the first line is '{ours[:_MOST_SHOWN]}', and that of {first} is "
                f"'{theirs[:_MOST_SHOWN]}'; files that are read together name the same columns in the same way: "
                "write one of them anew, or set data.header=false if they name none"
            )


def _column(name: str) -> Column:
    # In backticks, since Spark takes a dot in a bare name for a field of a struct.
    return F.col(f"`{name.replace('`', '``')}`")
