"""Table files as people have them: CSV in its dialects, Parquet, JSON and Excel, told apart and read."""

from __future__ import annotations

import codecs
import csv
import gzip
import json
import re
import zipfile
import zlib
from pathlib import Path
from typing import Any

import pandas as pd

from eqscale.errors import InputError

_FORMATS = ".csv, .tsv, .parquet, .json, .jsonl or .xlsx"
_SNIFFED = 1 << 16  # bytes that the dialect of a text is told from
_BOMS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))


def read_file(path: Path) -> pd.DataFrame:
    """A table from a file, unchecked; the format follows from the name, the dialect of a text from its content.

    Raises:
        InputError: no such file, or no readable table; it says why.
    """
    if path.is_dir():
        raise InputError(f"{path}: a folder; give a table in it, such as {path / 'runs.csv'}")
    if not path.is_file():
        raise InputError(f"{path}: no such file; give a table as {_FORMATS}, or mlflow:EXPERIMENT")
    suffixes = [suffix.lower() for suffix in path.suffixes]
    packed = suffixes[-1:] == [".gz"]
    suffix = (suffixes[:-1] if packed else suffixes)[-1:] or [".csv"]
    try:
        if suffix[0] in (".parquet", ".pq"):
            table = pd.read_parquet(path)
            named = [name for name in table.index.names if name is not None and name not in table]
            return table.reset_index(level=named) if named else table
        if suffix[0] in (".xlsx", ".xlsm", ".xls"):
            return pd.read_excel(path)
        encoding = _encoding(path, packed)
        if suffix[0] in (".json", ".jsonl", ".ndjson"):
            with _open(path, packed) as file:
                return _read_json(file.read().decode(encoding), path)
        return _read_csv(path, packed, encoding, suffix[0] == ".tsv")
    except ImportError as error:
        package = {".xlsx": "openpyxl", ".xlsm": "openpyxl", ".xls": "xlrd"}.get(suffix[0], "pyarrow")
        raise InputError(
            f"{path}: reading {suffix[0]} needs {package}: install it, or save the table as CSV"
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: neither UTF-8 nor marked as UTF-16; save the table as UTF-8") from error
    except (ValueError, KeyError, OSError, EOFError, RecursionError, zipfile.BadZipFile, zlib.error) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"{path}: not a readable table ({reason})") from error


def _open(path: Path, packed: bool) -> Any:
    return gzip.open(path) if packed else path.open("rb")


def _encoding(path: Path, packed: bool) -> str:
    """Encoding by the byte order mark; UTF-8 without one."""
    with _open(path, packed) as file:
        head = file.read(_SNIFFED)
    for mark, encoding in _BOMS:
        if head.startswith(mark):
            return encoding
    if b"\0" in head:
        raise InputError(f"{path}: no text, or UTF-16 without a byte order mark; save the table as UTF-8 CSV")
    return "utf-8"


def _read_csv(path: Path, packed: bool, encoding: str, tabs: bool) -> pd.DataFrame:
    with _open(path, packed) as file:
        # whole lines only: the last one may end within a character
        text = file.read(_SNIFFED).rpartition(b"\n")[0] or b""
        sample = [line for line in text.decode(encoding, "ignore").splitlines() if line.strip()]
    header = re.sub(r'"[^"]*"', "", sample[0]) if sample else ""
    separator = "\t" if tabs else max(",;\t", key=header.count)
    decimal = "."
    if separator != ",":
        cells = (cell.strip().strip('"') for line in sample[1:] for cell in line.split(separator))
        decimal = "," if any(re.fullmatch(r"[-+]?\d+,\d+(e[-+]?\d+)?", cell, re.IGNORECASE) for cell in cells) else "."
    with _open(path, packed) as file:
        frame = pd.read_csv(
            file, sep=separator, decimal=decimal, skipinitialspace=True, float_precision="round_trip",
            encoding=encoding,
        )  # fmt: skip
    for name in _repeated(sample[:1], separator):  # pandas would call it NAME.1
        raise InputError(f"{path}: column {name!r} appears more than once")
    return _without_points(frame, path) if decimal == "," else frame


def _repeated(header: list[str], separator: str) -> list[str]:
    names = [name.strip() for row in csv.reader(header, delimiter=separator, skipinitialspace=True) for name in row]
    return [name for i, name in enumerate(names) if name and name in names[:i]]


def _without_points(frame: pd.DataFrame, path: Path) -> pd.DataFrame:
    """A table with decimal commas in which points only separate thousands; refuses points that may be decimal."""
    columns = {}
    for name in frame.columns[[not pd.api.types.is_numeric_dtype(t) for t in frame.dtypes]]:
        text = frame[name].astype(str).str.strip()
        pointed = text.str.fullmatch(r"[-+]?\d+\.[\d.]*\d(,\d+)?([eE][-+]?\d+)?")
        if not pointed.any():
            continue
        grouped = text.str.fullmatch(r"[-+]?\d{1,3}(\.\d{3})+(,\d+)?")
        if not grouped[pointed].all():
            row = int((pointed & ~grouped).to_numpy().argmax())
            raise InputError(
                f"{path}: row {row + 1}, column {name!r}: {text[row]} has a decimal point, other columns have decimal "
                "commas"
            )
        plain = text.str.replace(".", "", regex=False).str.replace(",", ".", regex=False)
        columns[name] = text.where(~pointed, plain)
    return frame.assign(**columns)


def _read_json(text: str, path: Path) -> pd.DataFrame:
    """Records (a list of objects, or one object a line), or an object of columns."""
    try:
        data = json.loads(text)
    except json.JSONDecodeError:
        try:
            data = [json.loads(line) for line in text.splitlines() if line.strip()]
        except json.JSONDecodeError as error:
            raise InputError(f"{path}: not JSON, neither as a whole nor line by line ({error})") from None
    if isinstance(data, list) and data and all(isinstance(row, dict) for row in data):
        return pd.json_normalize(data)
    if isinstance(data, dict) and data and all(isinstance(column, (list, dict)) for column in data.values()):
        return pd.DataFrame(data)
    raise InputError(f"{path}: JSON, but neither a list of objects, nor one object a line, nor an object of columns")
