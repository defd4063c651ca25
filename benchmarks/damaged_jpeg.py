#!/usr/bin/env python3
"""How much damage to JPEGs is noticed, how many whole ones are refused, and what looking costs.

  python benchmarks/damaged_jpeg.py DIR ...     folders of JPEGs, searched through

Every file is decoded as it is. Of every sixth of at least 3 kB the pixels are written again in the
ways of WRITINGS, and each is damaged by every one of CUTS, but for the marker of the end, and of
HOLES, a block of zeros in its data at a place drawn by a fixed seed. Noticed means refused. Time is
of the CPU, one thread, beside OpenCV, which fills in what is lost.
"""

from __future__ import annotations

import collections
import io
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import cv2
import numpy as np
from PIL import Image

from lungkit.formats.channels import Unreadable
from lungkit.formats.images import decode_image

WRITINGS = {
    "4:2:0": {"quality": 90},
    "4:4:4, optimised": {"quality": 95, "subsampling": 0, "optimize": True},
    "strong, optimised": {"quality": 30, "optimize": True},
    "restarts": {"quality": 80, "restart_marker_rows": 1},
    "grey": {"quality": 80},
    "progressive": {"quality": 75, "progressive": True},
}
CUTS = (0.05, 0.1, 0.2, 0.5, 0.9, 0.98)  # shares of the data that are left
HOLES = (40, 64, 256, 512, 1024)         # zeros
EVERY, LEAST_BYTES = 6, 3000


def is_refused(content: bytes) -> bool:
    try:
        decode_image(content)
    except Unreadable:
        return True
    return False


def written(path: Path):
    """(name, content) of the picture in all WRITINGS."""
    image = Image.open(path).convert("RGB")
    for name, how in WRITINGS.items():
        buffer = io.BytesIO()
        (image.convert("L") if name == "grey" else image).save(buffer, "JPEG", **how)
        yield name, buffer.getvalue()


def damaged(content: bytes, rng):
    """(name, content) of every damage that the size of the data allows."""
    start = content.index(b"\xff\xda") + 14
    size = len(content) - 2 - start
    for share in CUTS:
        yield f"cut to {share:g}", content[:start + int(share * size)] + b"\xff\xd9"
    for length in HOLES:
        if size > 3 * length:
            at = start + int(rng.integers(size - length))
            yield f"{length} zeros", content[:at] + bytes(length) + content[at + length:]


def main(folders: list[str]) -> None:
    cv2.setNumThreads(1)
    paths = sorted(path for folder in folders for path in Path(folder).rglob("*.jp*g"))
    contents = [path.read_bytes() for path in paths]
    begun = time.process_time()
    refused = sum(is_refused(content) for content in contents)
    between = time.process_time()
    for content in contents:
        cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB)
    ours, theirs = between - begun, time.process_time() - between
    print(f"{refused} of {len(paths)} whole files refused; {1000 * ours / len(paths):.2f} ms each, "
          f"OpenCV {1000 * theirs / len(paths):.2f} ms", flush=True)
    rng, num, missed = np.random.default_rng(0), collections.Counter(), collections.Counter()
    large = [path for path, content in zip(paths, contents) if len(content) >= LEAST_BYTES]
    for path in large[::EVERY]:
        for how, content in written(path):
            num[how, "whole, refused"] += 1
            missed[how, "whole, refused"] += is_refused(content)
            num[how, "bytes behind, refused"] += 1
            missed[how, "bytes behind, refused"] += is_refused(content + bytes(999))
            for what, broken in damaged(content, rng):
                num[how, what] += 1
                missed[how, what] += not is_refused(broken)
    print("damage not noticed, of how many:")
    for what in dict.fromkeys(what for _, what in num):
        print(f"  {what:22}" + "".join(f"  {how} {missed[how, what]}/{num[how, what]}"
                                       for how in WRITINGS if num[how, what]))


if __name__ == "__main__":
    main(sys.argv[1:])
