"""Which originals belong together, as the user says: a CSV, a regular expression, or nothing."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from pathlib import Path

from lungkit.formats.sources import Source, shown, spelt
from lungkit.run.faults import BadOptions, Fault
from lungkit.run.tables import read_table

UNKNOWN_GROUPS = ("refuse", "own")  # what becomes of an original whose group is not known
# What people and programs write for a value that they do not have, in any case. Taken for a group,
# it would be the largest one: all patients who have nothing in common but that.
NOT_KNOWN = frozenset((
    "", "-", "--", "\u2013", "\u2014", "?", ".", "na", "n/a", "n.a.", "#n/a", "#na", "<na>", "nan",
    "-nan", "nat", "none", "null", "nil", "unknown", "unk", "undefined", "unspecified", "missing",
    "not available", "[not available]", "not reported", "not applicable", "[unknown]"))


def group_ids(sources: list[Source], groups: str | None, pattern: str | None,
              unknown: str = "refuse") -> tuple[dict[str, str], str, list[str]]:
    """{source name: group} as the user gives it; how: csv, regex or auto (each its own); warnings.

    groups: path of a CSV, "auto" or None; pattern: a regular expression, None: none. unknown: one
    of UNKNOWN_GROUPS; own: originals without a group are groups of one. Raises Fault, BadOptions.
    """
    if pattern is not None:
        found, given, where = groups_by_pattern(pattern, sources), "regex", "--group-regex"
    elif groups not in (None, "auto"):
        found, given, where = read_groups(Path(groups), sources), "csv", groups
    else:
        return {source.name: source.name for source in sources}, "auto", []
    lost = {name: group for name, group in found.items() if group.casefold() in NOT_KNOWN}
    if not lost:
        return found, given, []
    counts = Counter(lost.values())
    values = ", ".join(f"{count} {value!r}" for value, count in counts.most_common())
    what = f"{len(lost)} of {len(found)} images have no group in {where} ({values})"
    if unknown == "refuse":
        raise Fault(f"{what}: {shown(sorted(lost))}: name their patients or leave the images out; "
                    "or make each a group of its own by --unknown-groups own, if no two are of one "
                    "patient or that may lie on both sides of a split")
    warning = (f"unknown groups: {what}; each counts as a patient of its own, so that one patient "
               "may lie on both sides of a split, which makes accuracies too good")
    return found | {name: name for name in lost}, given, [warning]


def read_groups(path: Path, sources: list[Source]) -> dict[str, str]:
    """{source name: group} from a CSV with columns file_name, label, group. Raises Fault.

    A path that begins in a folder above the class folders, on this machine or another, is found by
    its end. An empty group is "".
    """
    known: dict[str, list[Source]] = {}  # two where a class folder is there in two spellings
    for source in sources:
        known.setdefault(_spelt_path(source.name), []).append(source)
    groups: dict[str, str] = {}
    unknown, wrong, twice = [], [], []
    for _, record in read_table(path, ("file_name", "label", "group")).rows:
        name, group = record["file_name"], spelt(record["group"])
        found = _by_its_end(known, _spelt_path(name))
        if not found:
            unknown.append(name)
        elif spelt(record["label"]) != found[0].label:
            wrong.append(name)
        elif {groups.setdefault(source.name, group) for source in found} != {group}:
            twice.append(name)
    missing = [s.name for s in sources if s.name not in groups] if not wrong else []
    faults = [f"{len(names)} {what}: {shown(names)}" for names, what in (
        (unknown, "files listed that are not among the images"),
        (missing, "images not listed"), (wrong, "labels that are not the image's class folder"),
        (twice, "files listed in two groups")) if names]
    if faults:
        raise Fault(f"{path}: {'; '.join(faults)}: file_name is relative to the folder of the "
                    "class folders, and every image needs one line")
    return groups


def _spelt_path(name: str) -> str:
    """A path of a table or of a disk, its parts spelt one way and joined by slashes."""
    return "/".join(map(spelt, name.replace("\\", "/").removeprefix("./").split("/")))


def _by_its_end(known: dict[str, list[Source]], path: str) -> list[Source]:
    """The sources of a path, or of what is left of it below some folder; the class is its first."""
    while path not in known and "/" in path:
        path = path.split("/", 1)[1]
    return known.get(path, [])


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
