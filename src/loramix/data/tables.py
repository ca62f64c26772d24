"""Tables: rows with named columns, read from files of every kind."""

import csv
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from loramix.storage.files import long_fields
from loramix.storage.texts import text_lines

if TYPE_CHECKING:
    from pyarrow import ChunkedArray

Row = Mapping[str, object]  # column -> value
Choose = Callable[[list[str]], Sequence[str]]  # the columns of a table -> those to read; may raise

PLAIN = (".csv", ".tsv", ".jsonl", ".json", ".txt")  # each also with .gz
SUFFIXES = (".parquet", *PLAIN, *(f"{suffix}.gz" for suffix in PLAIN))
_SPREADSHEETS = (".xlsx", ".xls", ".xlsm", ".ods", ".numbers")
_ONE_PER_LINE = (
    "write one object per line, not an array: python -c 'import json, sys; "
    "[print(json.dumps(row)) for row in json.load(sys.stdin)]' < FILE.json > FILE.jsonl"
)


def is_table(path: Path) -> bool:
    """Return whether a file of this name can be read."""
    return path.name.lower().endswith(SUFFIXES)


def read_table(
    path: Path, choose: Choose, *, rows: int | None = None, marked: str | None = None
) -> list[Row]:
    """Return the first `rows` rows of a file, or all of them, with the columns that `choose` names.

    marked: a column of which only whether it holds something matters: of nested values, such as
        pictures, True or None.
    Raises ValueError, csv.Error, OSError or EOFError, in words, for what cannot be read.
    """
    name = path.name.lower().removesuffix(".gz")
    if not is_table(path):
        raise ValueError(f"it is of no known kind{_instead(name)}")
    if name.endswith(".parquet"):
        return _read_parquet(path, choose, rows, marked)
    with text_lines(path) as lines, long_fields():
        if name.endswith((".csv", ".tsv")):
            return _read_csv(lines, choose, rows, "\t" if name.endswith(".tsv") else ",")
        if name.endswith(".txt"):
            choose(["text"])
            return [{"text": line.rstrip("\r\n")} for line in islice(lines, rows)]
        return _read_json_lines(lines, choose, rows)


def marks(column: "ChunkedArray") -> list[object]:
    """Return the values of an Arrow column; of a nested one True or None, as pictures are large."""
    from pyarrow import types

    if types.is_nested(column.type):
        return [valid or None for valid in column.is_valid().to_pylist()]
    return list(column.to_pylist())


def as_rows(columns: Mapping[str, Iterable[object]]) -> list[Row]:
    """Return Arrow columns as rows; keys that Arrow has filled with None are left out of objects,
    as it gives every object the keys of all.
    """
    rows = zip(*columns.values(), strict=True)
    return [dict(zip(columns, map(_as_given, values), strict=True)) for values in rows]


def _as_given(value: object) -> object:
    if isinstance(value, dict):
        return {key: _as_given(held) for key, held in value.items() if held is not None}
    return [_as_given(held) for held in value] if isinstance(value, list) else value


def _read_parquet(path: Path, choose: Choose, rows: int | None, marked: str | None) -> list[Row]:
    import pyarrow
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        chosen = list(choose(list(file.schema_arrow.names)))
        if rows is None or not file.metadata.num_rows:
            table = file.read(columns=chosen)
        else:
            batch = next(file.iter_batches(batch_size=rows, columns=chosen))
            table = pyarrow.Table.from_batches([batch])
    return as_rows(
        {name: marks(table[name]) if name == marked else table[name].to_pylist() for name in chosen}
    )


def _read_csv(lines: Iterable[str], choose: Choose, rows: int | None, separator: str) -> list[Row]:
    reader = csv.DictReader(lines, strict=True, delimiter=separator)
    read: list[Row] = []
    try:
        chosen = choose(list(reader.fieldnames or ()))
        for row in islice(reader, rows):
            if None in row:  # cells beyond the header: a comma outside quotes shifted the columns
                raise ValueError(f"line {reader.line_num} has more cells than the header")
            read.append({column: row[column] for column in chosen})
    except csv.Error as error:
        begins = reader.line_num + 1  # the row that is not whole
        raise ValueError(f"line {begins}: {error}; look for a quotation mark") from error
    return read


def _read_json_lines(lines: Iterable[str], choose: Choose, rows: int | None) -> list[Row]:
    read: list[dict[str, object]] = []
    found: dict[str, None] = {}  # the columns of all rows, as rows may lack some
    written = ((number, line) for number, line in enumerate(lines, start=1) if line.strip())
    for number, line in islice(written, rows):
        row = _json_object(number, line)
        read.append(row)
        found |= dict.fromkeys(row)
    chosen = choose(list(found))
    return [{column: row.get(column) for column in chosen} for row in read]


def _json_object(number: int, line: str) -> dict[str, object]:
    array = f"; {_ONE_PER_LINE}" if line.lstrip().startswith("[") else ""
    try:
        row = json.loads(line, object_pairs_hook=_without_repeats)
    except json.JSONDecodeError as error:
        whole = array or "; every line must hold one whole object"
        raise ValueError(
            f"line {number} is no JSON ({error.msg} at character {error.pos + 1}){whole}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"line {number}: {error}") from error
    if not isinstance(row, dict):
        raise ValueError(f"line {number} is no JSON object: {line.strip()[:60]}{array}")
    return row


def _without_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"an object has several keys '{twice}'; rename all but one")
    return found


def _instead(name: str) -> str:
    if name.endswith(_SPREADSHEETS):
        return "; save the sheet as CSV, in UTF-8"
    return f"; there are: {', '.join(SUFFIXES)}"
