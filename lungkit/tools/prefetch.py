"""Fetch base models into the cache, on a node with network, and prove that what is there is whole.

Run by hand, once, where compute nodes are offline; they then read the same cache (HF_HOME). Fetched
is what is read, of weights one variant and never a pickle. Whole means: every file is there, the
configs are of a Stable Diffusion that is trained here, every tensor has the shape that its config
says, and the content of the weights is what the hub's own names for it say (SHA-256).

A single .safetensors file is proved by its header and made the folder that it is trained from,
beside it; its SHA-256 is printed, to be held against the one that its release names.

Running the same command again fetches nothing and proves it anew.
Exit status: 0 all whole, 1 not whole or another kind of model, 2 bad options.
"""

from __future__ import annotations

import math
import os
import re
import sys
from pathlib import Path

from lungkit.generate.base_model import (
    STABLE_DIFFUSION_15,
    check_networks,
    check_schedule,
    open_tokenizer,
)
from lungkit.generate.base_parts import NETWORKS, open_parts
from lungkit.generate.hub import from_hub
from lungkit.generate.single_file import PREDICTIONS, as_folder, is_single_file, open_file
from lungkit.run import cli
from lungkit.run.faults import BadOptions, Fault
from lungkit.run.files import sha256_file


def prove(folder: Path, name: str) -> int:
    """Raise Fault unless the snapshot is whole; return the numbers that its networks hold."""
    parts = open_parts(folder)
    check_networks(parts)
    check_schedule(folder / "scheduler")
    open_tokenizer(folder / "tokenizer", parts["text_encoder"].config)
    for path in sorted(path for part in NETWORKS for path in (folder / part).glob("*.safetensors")):
        if path.is_symlink():
            blob = Path(os.readlink(path)).name  # the cache calls large files by their SHA-256
            if re.fullmatch("[0-9a-f]{64}", blob) and sha256_file(path) != blob:
                raise Fault(f"{path.parent.name}/{path.name} is not what the hub has: fetch it "
                            f"anew by `hf download {name} --force-download`")
    return sum(math.prod(shape) for part in parts.values() for shape in part.shapes.values())


def run(*, models: list[str], base_prediction: str | None) -> None:
    """Fetch or make each model, prove it, and print where it lies."""
    for name in models:
        told = ""
        try:
            if is_single_file(name):
                file = open_file(Path(name), base_prediction)
                file.parts()
                folder = as_folder(file, file.path.absolute().parent)
                told = f" of SHA-256 {file.sha256}"
            else:
                folder = from_hub(name)
            numbers = prove(folder, name)
        except BadOptions:
            raise
        except Fault as fault:
            raise Fault(f"{name}: {fault}") from None
        print(f"{name}{told}: whole, {numbers / 1e6:.0f} million numbers, in {folder}")


def build_parser():
    parser = cli.stage_parser("python -m lungkit.tools.prefetch", __doc__)
    parser.add_argument("models", nargs="*", default=[STABLE_DIFFUSION_15], metavar="ID|FILE",
                        help="hub ids and .safetensors files, as --base-model takes them "
                             "(default: that of the preset full)")
    parser.add_argument("--base-prediction", choices=PREDICTIONS,
                        help="of files that do not say themselves what they predict")
    return parser


def main(argv: list[str] | None = None) -> int:
    return cli.main(build_parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
