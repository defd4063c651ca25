"""Base models of a hub: in the cache, or fetched into it, and whole."""

from __future__ import annotations

import os
from pathlib import Path

from lungkit.generate.base_parts import NETWORKS, PARTS, open_parts
from lungkit.generate.model_files import choose_weights
from lungkit.run.faults import BadOptions, Fault


def from_hub(name: str) -> Path:
    """The snapshot of a hub model in the cache, fetched or completed where there is a network.

    Raises BadOptions.
    """
    from huggingface_hub import HfApi, snapshot_download

    state = "is not a folder, not in the model cache"
    try:
        folder = Path(snapshot_download(name, allow_patterns=["model_index.json"],
                                        local_files_only=True))
        open_parts(folder)
        return folder
    except Fault as fault:
        state = f"is not whole in the model cache ({fault})"
    except Exception as error:  # every kind of absence
        reason = type(error).__name__
    if is_offline():
        reason = "HF_HUB_OFFLINE is set"
    else:
        try:
            there = [file.rfilename for file in HfApi().model_info(name).siblings]
            folder = Path(snapshot_download(name, allow_patterns=needed_files(there)))
            open_parts(folder)
            return folder
        except Fault as fault:
            raise BadOptions(f"--base-model {name}: {fault}, by `hf download {name} "
                             "--force-download` if it is the cache's copy that is broken") from None
        except Exception as error:  # offline, unknown, gated
            reason = type(error).__name__
    raise BadOptions(f"--base-model {name} {state} and not reachable ({reason}): on a node with "
                     f"network run `python -m lungkit.tools.prefetch {name}`, or give a folder")


def is_offline() -> bool:
    """Whether the environment forbids the hub, as its own library reads it."""
    said = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    return said.upper() in ("1", "ON", "YES", "TRUE")


def needed_files(names: list[str]) -> list[str]:
    """Of a repository's files those that are read here: of weights one variant, never a pickle.

    Raises Fault where there are no such weights.
    """
    needed = [name for name in names if name == "model_index.json" or (
        name.count("/") == 1 and name.split("/")[0] in PARTS and name.endswith((".json", ".txt")))]
    for part, (_, weights) in NETWORKS.items():
        own = [name.removeprefix(f"{part}/") for name in names if name.startswith(f"{part}/")]
        needed += [f"{part}/{name}" for name in choose_weights(own, weights, part)[1]]
    return needed
