"""CSV tables as spreadsheets, databases and editors write them, and what is refused by its line."""

from __future__ import annotations

import pytest

from lungkit.run.faults import Fault
from lungkit.run.tables import read_table

COLUMNS = ["file_name", "group"]
PLAIN = "file_name,group\na/1.png,p1\nb/2.png,Müller\n"
ROWS = [{"file_name": "a/1.png", "group": "p1"}, {"file_name": "b/2.png", "group": "Müller"}]


def read(tmp_path, content, required=COLUMNS):
    path = tmp_path / "table.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_table(path, required)


SAVED = {
    "plain": PLAIN,
    "a byte order mark": "\ufeff" + PLAIN,
    "two byte order marks": "\ufeff\ufeff" + PLAIN,
    "utf-16": PLAIN.encode("utf-16"),
    "crlf": PLAIN.replace("\n", "\r\n"),
    "cr": PLAIN.replace("\n", "\r"),
    "no last line end": PLAIN.rstrip("\n"),
    "sep=,": "sep=,\r\n" + PLAIN,
    "sep=; after a byte order mark": "\ufeffsep=;\n" + PLAIN.replace(",", ";"),
    "another separator": '"sep=|"\n' + PLAIN.replace(",", "|"),
    "empty lines at the end": PLAIN + "\n\n",
    "separators at the end": PLAIN + ",\n,\n , \n",
    "empty lines before": "\n\n" + PLAIN,
    "an empty line between": PLAIN.replace("\na", "\n\na"),
    "an empty cell more": PLAIN.replace("\nb", ",\nb"),
    "semicolons": PLAIN.replace(",", ";"),
    "tabs": PLAIN.replace(",", "\t"),
    "blanks after commas": PLAIN.replace(",", ", "),
    "quoted after blanks": PLAIN.replace(",", ', "').replace("\n", '"\n'),
    "blanks around a column's name": PLAIN.replace("group", " group "),
    "columns without names": PLAIN.replace("group", "group,,").replace(
        "p1", "p1,x,y").replace("Müller", "Müller,,"),
}


@pytest.mark.parametrize("content", SAVED.values(), ids=SAVED)
def test_a_table_is_read_however_it_was_saved(tmp_path, content):
    columns, rows = read(tmp_path, content)
    assert columns == COLUMNS and [row for _, row in rows] == ROWS


@pytest.mark.parametrize(("content", "words"), [
    ("file_name,group,group\n", "has the column 'group' more than once, as columns 2 and 3"),
    ("group; file_name ;id;group\n", "the column 'group' more than once, as columns 1 and 4"),
    ("file_name,label\n", "lacks the column group: it has file_name, label"),
    ("", "lacks the column file_name, group: it has none"),
    (PLAIN + "c/3, old.png,p2\nd,p,q\n", "line 4 has 3 cells, the header 2; line 5 has 3 cells"),
    ("sep=,\n" + PLAIN + "c/3.png\n", "line 5 has 1 cells, the header 2"),
    (PLAIN.encode("latin-1"), "line 3 holds the byte 0xFC: save it as CSV in UTF-8"),
    (PLAIN.replace("1", "\0"), "line 2 holds a zero byte"),
    (PLAIN + 'c/3.png,"p3\nd/4.png,p4\n', "line 5: unexpected end of data"),
], ids=["twice", "twice among semicolons", "missing", "empty", "more cells", "fewer cells", "latin",
        "zero byte", "open quotation mark"])
def test_what_could_be_taken_two_ways_is_refused_with_its_line(tmp_path, content, words):
    with pytest.raises(Fault) as refused:
        read(tmp_path, content)
    assert words in str(refused.value) and str(tmp_path / "table.csv") in str(refused.value)


def test_rows_bear_their_line_and_cells_stay_as_they_are(tmp_path):
    rows = read(tmp_path, 'sep=,\n\nfile_name,group\n\n a ,"x\ny"\n"b,1", ""\n', ()).rows
    assert rows == [(6, {"file_name": " a ", "group": "x\ny"}),
                    (7, {"file_name": "b,1", "group": ' ""'})]
