"""Where original images lie: class folders, the images in them, what they are fingerprinted by."""

from __future__ import annotations

import os
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from lungkit.formats.images import SUFFIXES
from lungkit.formats.slides import SLIDE_SUFFIXES
from lungkit.run.faults import Fault, several
from lungkit.run.files import quick_fingerprint
from lungkit.run.system_files import is_system, listed

# "Training", "test_set", "images-val", "fold 1": folders of a split and of no class
SPLIT_NAME = re.compile(
    r"((x|y|data|images?|tiles|patches)[ _-])?"
    r"(train(ing)?|test(ing)?|val(id(ation)?)?|dev(elopment)?|eval(uation)?|hold[ _-]?out"
    r"|(fold|split|cv|partition)[ _-]?\d+)"
    r"([ _-]?(set|split|data|dataset|images?|tiles|patches))?([ _-]?\d+)?", re.IGNORECASE)


@dataclass(frozen=True)
class Source:
    """One original image: `name` is relative to the folder of the class folders.

    label: the class folder's name in composed letters (NFC), without blanks at its ends.
    """

    path: Path
    name: str
    label: str


def shown(names: list[str]) -> str:
    """Up to five names, quoted, and how many more."""
    rest = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(repr(name) for name in names[:5]) + rest


def spelt(name: str) -> str:
    """The one spelling of a name: composed letters (NFC), no blanks at its ends.

    File systems exchange composed and decomposed letters at will, and no eye tells them apart.
    """
    return unicodedata.normalize("NFC", name).strip()


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
        return sorted(e.name for e in entries if e.is_dir() and not _is_skipped(e.name))


def _is_skipped(name: str) -> bool:
    return name.startswith(".") or is_system(name)


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES + SLIDE_SUFFIXES) and not _is_skipped(name)


def find_sources(root: Path) -> tuple[list[Source], list[str], list[str]]:
    """The images of every class folder, sorted by name, the names of other files there, and of
    files and folders of the system, or hidden, that were skipped.

    Two spellings of one folder name are one class. Raises Fault: no class folders, one only, an
    empty one, folders of splits or of more class folders, unreadable, line breaks.
    """
    folders = _folders(root)
    labels = sorted({spelt(folder) for folder in folders})
    if not labels:
        raise Fault(f"{root} holds no class folders: expected one sub-folder of images per class")
    if len(labels) == 1:
        raise Fault(f"{root} holds one class only ({labels[0]!r}): at least two are needed")
    reserved = [folder for folder in folders if SPLIT_NAME.fullmatch(spelt(folder))]
    if reserved:
        raise Fault(f"{root} holds {shown(reserved)}: class folders must not be named like a "
                    "split, for the splits are made here: give a folder of class folders, such as "
                    f"{root / reserved[0]} if it holds them, or join the splits' class folders")
    sources: list[Source] = []
    others: list[str] = []
    faults: list[str] = []
    skipped = [name for name in os.listdir(root) if _is_skipped(name)]
    for folder in folders:
        found = _walk(root / folder, faults, skipped)
        names = [path.relative_to(root).as_posix() for path in found]
        images = [(path, name) for path, name in zip(found, names) if _is_image(path.name)]
        others += [name for name in names if not _is_image(Path(name).name)]
        sources += [Source(path, name, spelt(folder)) for path, name in images]
        if not images and not faults:
            faults.append(f"class folder {folder!r} holds no PNG, JPEG, TIFF or slide")
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
    _refuse_nested_classes(root, [source.name for source in sources])
    return sorted(sources, key=lambda s: (s.label, s.name)), sorted(others), sorted(skipped)


def _refuse_nested_classes(root: Path, names: list[str]) -> None:
    """Raise Fault where the folders taken for classes hold the class folders.

    That is so where no image lies in a class folder itself, and they hold the same sub-folders, or
    several each (families of classes), whose names do not number patients or slides; or where they
    number patients themselves, more than there are sub-folders.
    """
    inner: dict[str, set[str]] = {}
    for name in names:
        folder, first, *deeper = name.split("/")
        inner.setdefault(folder, set()).add(spelt(first) if deeper else "")
    if any("" in folders for folders in inner.values()):
        return
    outer, sizes = sorted(inner), sorted(map(len, inner.values()))
    shared, every = set.intersection(*inner.values()), set.union(*inner.values())
    nested = sizes[-1] > 1 and (sizes[0] > 1 or shared) and not _are_numbered(every)
    by_patient = len(shared) > 1 and _are_numbered(set(outer)) and len(outer) > len(every)
    if not (nested or by_patient):
        return
    what = "the same folders" if shared else "folders"
    raise Fault(f"{shown(outer)} in {root} hold {what} of images ({shown(sorted(every))}) and are "
                "no classes: give the folder whose sub-folders are the classes, such as "
                f"{root / outer[0]}; where they are classes, of patients or sites, put the images "
                "into the class folders and give the groups in a CSV")


def _are_numbered(names: set[str]) -> bool:
    """Whether names number patients, slides or scales: digits in half of them, or a last letter
    (case A, case B)."""
    stems = {name[:-1] for name in names}
    return 2 * sum(any(c.isdigit() for c in name) for name in names) >= len(names) or (
        len(stems) == 1 and len(*stems) > 2)


def _walk(top: Path, faults: list[str], skipped: list[str]) -> list[Path]:
    """Every file below `top` but those of the system or hidden, whose names go to `skipped`.

    Links are followed, each folder is entered once.
    """
    files, seen = [], set()

    def unreadable(error: OSError) -> None:
        faults.append(f"{error.filename!r} cannot be read ({error.strerror})")

    for folder, inner, names in os.walk(top, onerror=unreadable, followlinks=True):
        parts = {name[:-5] for name in names if name.lower().endswith(".mrxs")}  # of those slides
        real = os.path.realpath(folder)
        if real in seen:
            inner[:] = []
            continue
        seen.add(real)
        skipped += [name for name in inner + names if _is_skipped(name)]
        inner[:] = sorted(name for name in inner if not _is_skipped(name) and name not in parts)
        files += [Path(folder, name) for name in names if not _is_skipped(name)]
    return sorted(files)


def fingerprint(sources: list[Source]) -> str:
    """`quick_fingerprint` of images, and of the folder beside a MIRAX slide, with its pixels."""
    def beside(path: Path) -> list[Path]:
        parts = path.with_suffix("")
        mirax = path.suffix.lower() == ".mrxs" and parts.is_dir()
        return listed(parts) if mirax else []

    return quick_fingerprint(((source.name, source.path, *beside(source.path))
                              for source in sources), sample_bytes=4096, whole_bytes=16384)
