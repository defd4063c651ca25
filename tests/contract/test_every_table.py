"""Every table that is read: saved by a spreadsheet it holds the same, with a column twice it is
refused, and no module reads one by itself."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lungkit.compare.results import read_results
from lungkit.data.dataset import read_rows
from lungkit.data.manifest import COLUMNS
from lungkit.formats.groups import read_groups
from lungkit.formats.sources import Source
from lungkit.nuclei.features import IMAGE_COLUMNS, IMAGES_FILE, read_image_features
from lungkit.run.faults import Fault
from lungkit.run.files import sha256_file
from lungkit.tools.adopt import read_columns

ROOT = Path(__file__).resolve().parents[2]


def groups(path: Path):
    found = [Source(Path(name), name, name[0]) for name in ("a/1.png", "b/x/1.png")]
    return read_groups(path, found)


def image_features(path: Path):
    known = {"features": {IMAGES_FILE: {"sha256": sha256_file(path)}}}
    return read_image_features(path.parent, known)


def accuracies(path: Path):
    return read_results(path).rows


def metadata(path: Path):
    return [(row, row.extra) for row in read_rows(path.parent)]


def adopted(path: Path):
    faults = []
    found = read_columns(path.parent, faults)
    if faults:
        raise Fault(faults[0])
    return found


METADATA = [",".join([*COLUMNS, "kind"]),
            *(f"{split}/a/{i}.png,a,{split},,Müller,,7,,x"
              for i, split in enumerate(("test", "train")))]
TABLES = {  # what it is: what reads it, a column, its lines
    "groups.csv": (groups, "group", ["file_name,label,group", "a/1.png,a,p1", "b/x/1.png,b,p2"]),
    "accuracies.csv": (accuracies, "accuracy", [
        "dataset,repeat,accuracy", "old,0,0.5", "old,1,0.6", "new,0,0.7", "new,1,0.8"]),
    "metadata.csv": (metadata, "split", METADATA),
    "metadata.csv of others": (adopted, "group", METADATA),
    IMAGES_FILE: (image_features, "num_nuclei", [
        ",".join(["file_name", *IMAGE_COLUMNS]),
        *(",".join([f"{i}.png", *map(str, range(1, len(IMAGE_COLUMNS)))]) + "," for i in "ab")]),
}
SAVED = {
    "with a byte order mark": lambda text: "\ufeff" + text,
    "with CRLF": lambda text: text.replace("\n", "\r\n"),
    "with sep=": lambda text: "sep=,\n" + text,
    "with empty lines": lambda text: text + "\n" + "," * text.splitlines()[0].count(",") + "\n",
    "with semicolons": lambda text: text.replace(",", ";"),
    "with blanks": lambda text: text.replace(",", ", "),
}


def write(path: Path, text: str) -> Path:
    path.write_bytes(text.encode("utf-8"))
    return path


@pytest.mark.parametrize("saved", SAVED.values(), ids=SAVED)
@pytest.mark.parametrize("name", TABLES)
def test_a_table_saved_by_a_spreadsheet_holds_the_same(tmp_path, name, saved):
    (read, _, lines), name = TABLES[name], name.split()[0]
    text = "\n".join(lines) + "\n"
    expected = repr(read(write(tmp_path / name, text)))  # NaN is like NaN in words
    assert repr(read(write(tmp_path / name, saved(text)))) == expected


@pytest.mark.parametrize(("written", "hint"), [("0,5", "decimal comma"), ("50%", "percent")])
def test_an_accuracy_that_is_no_fraction_with_a_point_is_refused(tmp_path, written, hint):
    text = f"dataset;repeat;accuracy\nold;0;{written}\nold;1;0.6\nnew;0;0.7\nnew;1;0.8\n"
    with pytest.raises(Fault, match=f"line 2: accuracy is '{written}', not a number .*{hint}"):
        accuracies(write(tmp_path / "accuracies.csv", text))


@pytest.mark.parametrize("name", TABLES)
def test_a_column_that_is_there_twice_is_refused_by_its_name(tmp_path, name):
    (read, column, lines), name = TABLES[name], name.split()[0]
    read(write(tmp_path / name, "\n".join(lines)))
    twice = [f"{line},{column if line == lines[0] else '0.1'}" for line in lines]
    with pytest.raises(Fault, match=f"{name}.* has the column '{column}' more than once"):
        read(write(tmp_path / name, "\n".join(twice)))


@pytest.mark.parametrize("path", ["a\\1.png", ".\\a\\1.png", "./a/1.png", "C:\\lung\\a\\1.png",
                                  "\\\\nas\\lung\\a\\1.png", "/data/lung/a/1.png", "lung/a/1.png"])
def test_a_path_of_another_machine_is_found_by_its_end(tmp_path, path):
    lines = ["file_name,label,group", f"{path},a,p1", "b/x/1.png,b,p2"]
    assert groups(write(tmp_path / "groups.csv", "\n".join(lines))) == {
        "a/1.png": "p1", "b/x/1.png": "p2"}


def test_no_module_reads_a_table_by_itself():
    reads = re.compile(r"\bcsv\.(DictR|r)eader\b|\bread_csv\(|\bloadtxt\(|\bgenfromtxt\(")
    found = {path.relative_to(ROOT).as_posix()
             for path in (*ROOT.glob("lungkit/**/*.py"), *ROOT.glob("*.py"))
             if reads.search(path.read_text())}
    found.discard("lungkit/ct/tables.py")  # rows of the NBIA have values too many in the middle
    assert found == {"lungkit/run/tables.py"}
