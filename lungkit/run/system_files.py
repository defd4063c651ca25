"""What operating systems, file servers and viewers leave in a user's folders, by name.

Every reader of a user's folder asks here: a folder that was looked at is the folder it was.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

# in small letters: servers and copies write them in either
NAMES = frozenset({
    # macOS and its archives
    ".ds_store", "__macosx", ".trashes", ".spotlight-v100", ".fseventsd", ".temporaryitems",
    ".documentrevisions-v100", ".apdisk", ".localized", ".appledouble", ".appledb",
    ".appledesktop", "network trash folder", "temporary items", "icon\r",
    # Windows
    "thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "$recycle.bin", "recycler",
    "system volume information",
    # Linux and its desktops
    "lost+found", ".directory", ".thumbnails",
    # Synology, QNAP and other file servers
    "@eadir", "@tmp", "@sharebin", "#recycle", "#snapshot", "@recycle", "@recently-snapshot",
    ".@__thumb", ".@upload_cache", ".snapshot", ".snapshots", ".zfs",
    # notebooks
    ".ipynb_checkpoints"})
PREFIXES = ("._", ".nfs", ".fuse_hidden", ".smbdelete", ".trash-", "thumbs.db:")
SUFFIXES = (":zone.identifier", "@synoeastream", "@synoresource")


def is_system(name: str) -> bool:
    """Whether a file or folder of this name is the system's and no user's."""
    low = name.lower()
    return low in NAMES or low.startswith(PREFIXES) or low.endswith(SUFFIXES)


def listed(folder: Path, pattern: str = "*") -> list[Path]:
    """The paths below `folder` that match, sorted, without those of the system or inside of them.

    Of a folder that is not there: none.
    """
    return [path for path in sorted(Path(folder).glob(pattern))
            if not any(map(is_system, path.relative_to(folder).parts))]


def in_words(names: Iterable[str]) -> str:
    """How many of which names, most frequent first: "3 '@eaDir', 2 '._*', 1 'Thumbs.db'"."""
    counts = Counter("._*" if name.startswith("._") else name for name in names)
    return ", ".join(f"{number} {name!r}" for name, number in counts.most_common())
