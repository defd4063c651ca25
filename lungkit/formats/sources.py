"""Where original images lie and which of them belong together: class folders, groups.csv, names."""

from __future__ import annotations

import csv
import os
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from lungkit.data.splits import SPLITS
from lungkit.formats.images import SUFFIXES
from lungkit.formats.slides import SLIDE_SUFFIXES
from lungkit.run.faults import BadOptions, Fault, several
from lungkit.run.files import quick_fingerprint


@dataclass(frozen=True)
class Source:
    """One original image: `name` is relative to the folder of the class folders."""

    path: Path
    name: str
    label: str


def shown(names: list[str]) -> str:
    """Up to five names, quoted, and how many more."""
    rest = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(repr(name) for name in names[:5]) + rest


# ------------------------------------------------------------------ class folders

def find_root(input_dir: Path) -> Path:
    """The folder that holds the class folders: `input_dir`, its images/, or its only sub-folder."""
    root = input_dir
    while True:
        folders = _folders(root)
        only = folders[0] if len(folders) == 1 else "images"  # a sample has truth/ beside images/
        if only not in folders or len(_folders(root / only)) < 2 \
                or any(_is_image(name) for name in os.listdir(root / only)):
            return root
        root = root / only


def _folders(path: Path) -> list[str]:
    with os.scandir(path) as entries:
        return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES + SLIDE_SUFFIXES) and not name.startswith(".")


def find_sources(root: Path) -> tuple[list[Source], list[str]]:
    """The images of every class folder, sorted by name, and the names of other files there.

    Raises Fault: no class folders, one only, an empty one, a split's name, unreadable, line breaks.
    """
    labels = _folders(root)
    if not labels:
        raise Fault(f"{root} holds no class folders: expected one sub-folder of images per class")
    if len(labels) == 1:
        raise Fault(f"{root} holds one class only ({labels[0]!r}): at least two are needed")
    reserved = [label for label in labels if label.lower() in SPLITS]
    if reserved:
        raise Fault(f"{root} holds {shown(reserved)}: class folders must not be named like a "
                    "split; give the folder of the class folders, the splits are made here")
    sources: list[Source] = []
    others: list[str] = []
    faults: list[str] = []
    for label in labels:
        found = _walk(root / label, faults)
        names = [path.relative_to(root).as_posix() for path in found]
        images = [(path, name) for path, name in zip(found, names) if _is_image(path.name)]
        others += [name for name in names if not _is_image(Path(name).name)]
        sources += [Source(path, name, label) for path, name in images]
        if not images and not faults:
            faults.append(f"class folder {label!r} holds no PNG, JPEG, TIFF or slide")
    broken = [s.name for s in sources if any(c in s.name for c in "\n\r\0")]
    if broken:
        faults.append(f"names hold a line break: {shown(broken)}: rename them")
    # control characters, and bytes that are no text; spaces and letters of any script are welcome
    odd = [s.name for s in sources if s.name not in broken
           and any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in s.name)]
    if odd:
        faults.append(f"names hold unprintable characters: {shown(odd)}: rename them")
    if faults:
        raise Fault(f"{root}: {several(faults)}")
    return sorted(sources, key=lambda s: (s.label, s.name)), sorted(others)


def _walk(top: Path, faults: list[str]) -> list[Path]:
    """Every visible file below `top`; links are followed, each folder is entered once."""
    files, seen = [], set()

    def unreadable(error: OSError) -> None:
        faults.append(f"{error.filename!r} cannot be read ({error.strerror})")

    for folder, inner, names in os.walk(top, onerror=unreadable, followlinks=True):
        parts = {name[:-5] for name in names if name.lower().endswith(".mrxs")}  # of those slides
        inner[:] = sorted(name for name in inner if not name.startswith(".") and name not in parts)
        real = os.path.realpath(folder)
        if real in seen:
            inner[:] = []
            continue
        seen.add(real)
        files += [Path(folder, name) for name in names if not name.startswith(".")]
    return sorted(files)


def fingerprint(sources: list[Source]) -> str:
    """`quick_fingerprint` of images, and of the folder beside a MIRAX slide, with its pixels."""
    def beside(path: Path) -> list[Path]:
        parts = path.with_suffix("")
        mirax = path.suffix.lower() == ".mrxs" and parts.is_dir()
        return sorted(parts.iterdir()) if mirax else []

    return quick_fingerprint(((source.name, source.path, *beside(source.path))
                              for source in sources), sample_bytes=4096, whole_bytes=16384)


# ------------------------------------------------------------------ groups

def group_ids(sources: list[Source], groups: str | None, pattern: str | None
              ) -> tuple[dict[str, str], str]:
    """{source name: group} as the user gives it, and how: csv, regex or auto (each its own).

    groups: path of a CSV, "auto" or None; pattern: a regular expression, None: none.
    """
    if pattern is not None:
        return groups_by_pattern(pattern, sources), "regex"
    if groups not in (None, "auto"):
        return read_groups(Path(groups), sources), "csv"
    return {source.name: source.name for source in sources}, "auto"


def read_groups(path: Path, sources: list[Source]) -> dict[str, str]:
    """{source name: group} from a CSV with columns file_name, label, group. Raises Fault."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = reader.fieldnames or []
            if not {"file_name", "label", "group"} <= set(columns):
                raise Fault(f"{path} has columns {', '.join(map(str, columns)) or 'none'}: "
                            "expected file_name,label,group")
            records = list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise Fault(f"{path} is not a CSV in UTF-8 ({error})") from None
    # one spelling for composed and decomposed letters, which file systems exchange at will
    known = {unicodedata.normalize("NFC", s.name): s for s in sources}
    groups: dict[str, str] = {}
    unknown, wrong, empty, twice = [], [], [], []
    for record in records:
        name = record["file_name"] or ""
        source = known.get(unicodedata.normalize("NFC", name.replace("\\", "/").removeprefix("./")))
        group = (record["group"] or "").strip()
        if source is None:
            unknown.append(name)
        elif record["label"] != source.label:
            wrong.append(name)
        elif not group:
            empty.append(name)
        elif groups.setdefault(source.name, group) != group:
            twice.append(name)
    missing = [s.name for s in sources if s.name not in groups] if not (wrong or empty) else []
    faults = [f"{len(names)} {what}: {shown(names)}" for names, what in (
        (unknown, "files listed that are not among the images"),
        (missing, "images not listed"), (wrong, "labels that are not the image's class folder"),
        (empty, "files without a group"), (twice, "files listed in two groups")) if names]
    if faults:
        raise Fault(f"{path}: {'; '.join(faults)}: file_name is relative to the folder of the "
                    "class folders, and every image needs one line")
    return groups


def groups_by_pattern(pattern: str, sources: list[Source]) -> dict[str, str]:
    """{source name: group}, the group being what a regular expression finds in the name.

    The name is the path relative to the folder of the class folders, with forward slashes. The
    group is the expression's first capture group, where it has one, else the whole first match:
    'TCGA-..-....' is a TCGA patient. As in a CSV, a group spans classes: a patient has one disease
    and gives tiles without it, too. Raises BadOptions (no regular expression), Fault (no match).
    """
    try:
        expression = re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise BadOptions(f"--group-regex {pattern!r} is not a regular expression ({error})"
                         ) from None
    first = min(1, expression.groups)
    groups, lost = {}, []
    for source in sources:
        match = expression.search(unicodedata.normalize("NFC", source.name))
        group = (match[first] or "").strip() if match else ""
        if group:
            groups[source.name] = group
        else:
            lost.append(source.name)
    if lost:
        what = "its capture group" if first else "it"
        raise Fault(f"--group-regex {pattern!r}: {what} matches nothing in {len(lost)} of "
                    f"{len(sources)} names: {shown(lost)}: names are paths relative to the folder "
                    "of the class folders; change the expression or name the groups in a CSV")
    return groups
