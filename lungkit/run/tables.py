"""Read CSV tables as people and programs write them; every table of the package is read here.

Understood are UTF-8 with or without a byte order mark and the UTF-16 of spreadsheets; commas,
semicolons or tabs, and a first line `sep=;`; any line ends; blanks after the separators where the
header has them; lines without content. What could be taken two ways is refused with its line: a
column that is there twice, a line of more or fewer cells than the header, an open quotation mark.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from lungkit.run.faults import Fault, several

SEPARATORS = ",;\t"
_SAID_SEPARATOR = re.compile(r'"?sep=([^"\r\n])"?(\r\n|\r|\n)')  # a spreadsheet's first line


class Table(NamedTuple):
    """columns: names without blanks around them. rows: (line in the file, {column: cell as it is}).

    A column without a name, as an index is written, is in neither.
    """

    columns: list[str]
    rows: list[tuple[int, dict[str, str]]]


def read_table(path: Path, required: Sequence[str] = ()) -> Table:
    """Read a CSV that has at least the columns `required`. Raises Fault, OSError."""
    text = _text(path)
    said = _SAID_SEPARATOR.match(text)
    body, lines_before = (text[said.end():], 1) if said else (text, 0)
    separator, has_blanks = _separator(body, said[1] if said else SEPARATORS, required)
    reader = csv.reader(io.StringIO(body, newline=""), delimiter=separator, strict=True,
                        skipinitialspace=has_blanks)
    try:
        lines = [(lines_before + reader.line_num, cells) for cells in reader
                 if any(cell.strip() for cell in cells)]
    except csv.Error as error:
        raise Fault(f"{path} is not a CSV: line {lines_before + reader.line_num}: {error}: look "
                    "for a quotation mark without its partner") from None
    columns = [cell.strip().strip("\ufeff") for cell in lines[0][1]] if lines else []
    _check_columns(path, columns, required)
    _check_lengths(path, lines, separator)
    return Table([name for name in columns if name],
                 [(line, {name: cell for name, cell in zip(columns, cells) if name})
                  for line, cells in lines[1:]])


def in_any_case(path: Path, columns: Sequence[str]) -> dict[str, str]:
    """{name in small letters: the column as it is written}. Raises Fault where two are one name."""
    found: dict[str, str] = {}
    for name in columns:
        if (other := found.setdefault(name.lower(), name)) != name:
            raise Fault(f"{path} has the columns {other!r} and {name!r}, which are one: remove or "
                        "rename one")
    return found


def _text(path: Path) -> str:
    content = Path(path).read_bytes()
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = _count_lines(content[:error.start].decode("latin-1"))
        raise Fault(f"{path} is not a CSV text file in UTF-8: line {line} holds the byte "
                    f"0x{content[error.start]:02X}: save it as CSV in UTF-8") from None
    before, zero, _ = text.partition("\0")
    if zero:
        raise Fault(f"{path} is not a CSV text file: line {_count_lines(before)} holds a zero byte")
    return text


def _count_lines(text: str) -> int:
    return 1 + len(re.findall(r"\r\n|\r|\n", text))


def _separator(text: str, choice: str, required: Sequence[str]) -> tuple[str, bool]:
    """Which of `choice` gives most of the required columns, and whether blanks follow it."""
    header = next(filter(str.strip, re.split(r"[\r\n]", text)), "")
    cells = {one: next(csv.reader([header], delimiter=one, skipinitialspace=True), [])
             for one in choice}
    best = max(choice, key=lambda one: len({cell.strip() for cell in cells[one]} & set(required)))
    return best, f"{best} " in header


def _check_columns(path: Path, columns: list[str], required: Sequence[str]) -> None:
    twice = sorted({name for name in columns if name and columns.count(name) > 1})
    if twice:
        places = " and ".join(str(i) for i, name in enumerate(columns, 1) if name == twice[0])
        raise Fault(f"{path} has the column {twice[0]!r} more than once, as columns {places}: "
                    "remove or rename all but one")
    missing = [name for name in required if name not in columns]
    if missing:
        raise Fault(f"{path} lacks the column {', '.join(missing)}: it has "
                    f"{', '.join(filter(None, columns)) or 'none'}")


def _check_lengths(path: Path, lines: list[tuple[int, list[str]]], separator: str) -> None:
    width = len(lines[0][1]) if lines else 0
    odd = [f"line {line} has {len(cells)} cells, the header {width}" for line, cells in lines
           if len(cells) < width or any(cell.strip() for cell in cells[width:])]
    if odd:
        raise Fault(f"{path}: {several(odd)}: a cell that holds {separator!r} needs quotation "
                    "marks around it")
