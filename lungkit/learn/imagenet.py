"""ImageNet's weights of torchvision's networks: found in torch's cache, or fetched into it.

Networks and where their weights lie are torchvision's own. What is fetched is checked by the hash
in its name and is whole or absent. Nothing is ever trained from other weights in their place.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from lungkit.run import faults
from lungkit.run.files import atomic_path, sha256_file

IMAGENET = "imagenet"  # as --weights names them
SIDE_PX = 224          # of the images that they were trained on
WAIT_SEC = 15          # for a server that does not answer
# as torchvision's get_weight names them: the first set of each, whose recipes are alike
WEIGHTS = {"resnet18": "ResNet18_Weights.IMAGENET1K_V1",
           "convnext_tiny": "ConvNeXt_Tiny_Weights.IMAGENET1K_V1",
           "densenet121": "DenseNet121_Weights.IMAGENET1K_V1",
           "efficientnet_b0": "EfficientNet_B0_Weights.IMAGENET1K_V1",
           "mobilenet_v3_large": "MobileNet_V3_Large_Weights.IMAGENET1K_V1"}


def weights_paths(models: Sequence[str]) -> dict[str, Path]:
    """The weights' file of each model. Raises BadOptions, once, where some cannot be had."""
    found, missing, why = {}, [], ""
    for model in models:
        url = url_of(model)
        path = folder() / url.rpartition("/")[2]
        if not path.is_file() and not why:  # one server that does not answer is enough to wait for
            try:
                fetch(url, path)
            except (OSError, ValueError) as error:
                why = faults.one_line(error)[:120]
        if path.is_file():
            if not is_whole(path):
                raise faults.BadOptions(f"--weights {IMAGENET}: {path} has another hash than its "
                                        "name says: remove it, and it is fetched again")
            found[model] = path
        else:
            missing.append((model, path))
    if missing:
        names = ", ".join(f"m.get_weight({WEIGHTS[model]!r}).get_state_dict()"
                          for model, _ in missing)
        raise faults.BadOptions(
            f"--weights {IMAGENET}: those of {', '.join(model for model, _ in missing)} are not in "
            f"{folder()} and cannot be fetched ({why}): where there is a network run "
            f'python -c "import torchvision.models as m; {names}", which fills that folder, or '
            f"copy {', '.join(path.name for _, path in missing)} there")
    return found


def folder() -> Path:
    """Where torch keeps weights; TORCH_HOME moves it."""
    import torch

    return Path(torch.hub.get_dir()) / "checkpoints"


def url_of(model: str) -> str:
    """Where torchvision says that a model's weights are."""
    from torchvision import models

    return models.get_weight(WEIGHTS[model]).url


def fetch(url: str, path: Path) -> None:
    """Download to `path`. Raises OSError, or ValueError where the hash in its name is another."""
    import urllib.request

    with urllib.request.urlopen(url, timeout=WAIT_SEC) as answer, atomic_path(path) as hidden:
        with open(hidden, "wb") as file:
            shutil.copyfileobj(answer, file)
        if not is_whole(hidden, path.name):
            raise ValueError(f"what came as {path.name} has another hash")


def is_whole(path: Path, name: str | None = None) -> bool:
    """Whether a file's SHA-256 begins as `name` ends, or by None its own; without one it does."""
    wanted = re.search(r"-([0-9a-f]{8,})\.pth$", name or path.name)
    return not wanted or sha256_file(path).startswith(wanted[1])


def in_todays_words(state: dict) -> dict:
    """DenseNet's weights under the names that torchvision's network has had since 2017."""
    return {re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2", key): tensor
            for key, tensor in state.items()}
