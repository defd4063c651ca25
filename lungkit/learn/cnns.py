"""The CNNs that repeats train: models by name, their peak rates, weights from file or package.

Feeds cnn_classify.RECIPE: raise it when this gives other bytes.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from lungkit.learn import imagenet, pretrained
from lungkit.learn.batches import MEAN, STD
from lungkit.run import faults


def small_cnn(num_classes: int):
    """Five convolutions, 0.13 M weights; all but the first at a quarter of the side and below.

    Ours: of four such stacks the cheapest, and none was better on LC25000's val split at 64 px.
    """
    from torch import nn

    def block(num_in: int, num_out: int, stride: int) -> list[nn.Module]:
        return [nn.Conv2d(num_in, num_out, 3, stride, 1, bias=False), nn.BatchNorm2d(num_out),
                nn.ReLU(inplace=True)]

    return nn.Sequential(
        *block(3, 16, 2), *block(16, 32, 2), *block(32, 64, 2), *block(64, 64, 1),
        *block(64, 128, 2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, num_classes))


def of_torchvision(name: str, num_classes: int):
    from torchvision import models

    return getattr(models, name)(num_classes=num_classes)


def efficientnet_lite0(num_classes: int):
    """EfficientNet-Lite0, 3.4 M weights; it takes other pixels than ImageNet's usual ones.

    It halves an image five times: smaller ones than LEAST_SIDE_PX are enlarged to that.
    """
    model = pretrained.build(pretrained.LITE0, num_classes)
    model.pixels = pretrained.MEAN, pretrained.STD
    model.register_forward_pre_hook(enlarge)
    return model


def enlarge(_model, inputs: tuple) -> tuple:
    """The batch float32 [B, 3, S, S], bicubically to LEAST_SIDE_PX where S is less."""
    from torch.nn.functional import interpolate

    [batch] = inputs
    if batch.shape[-1] >= LEAST_SIDE_PX:
        return inputs
    return (interpolate(batch, size=(LEAST_SIDE_PX,) * 2, mode="bicubic"),)


LITE0 = "efficientnet_lite0"
OF_TORCHVISION = "torchvision/"
LEAST_SIDE_PX = 128  # ours: fine-tuned on LC25000 at 64 px it reached 0.77, enlarged 0.84, n = 1
# name: what builds it for so many classes, and the peak of its learning rate's cycle
MODELS = {"small": (small_cnn, 2e-3),
          "resnet18": (partial(of_torchvision, "resnet18"), 1e-3),
          "convnext_tiny": (partial(of_torchvision, "convnext_tiny"), 5e-4),
          "densenet121": (partial(of_torchvision, "densenet121"), 1e-3),
          "efficientnet_b0": (partial(of_torchvision, "efficientnet_b0"), 1e-3),
          "mobilenet_v3_large": (partial(of_torchvision, "mobilenet_v3_large"), 1e-3),
          LITE0: (efficientnet_lite0, 1e-3)}


def resolve(model: str | None, weights: Path | None, *,
            frozen: bool) -> tuple[str | None, Path | None]:
    """The model (None: the preset's) and the file that the options mean. Raises BadOptions."""
    if weights is not None and str(weights) == pretrained.IMAGENET_LITE0:
        if model not in (None, LITE0):
            raise faults.BadOptions(f"--weights {weights} are of --model {LITE0}, not of {model}")
        model, weights = LITE0, pretrained.weights_path()
    elif weights is not None and str(weights) == imagenet.IMAGENET:
        if model is None:
            raise faults.BadOptions(f"--weights {weights} needs the --model that they are of")
        weights = imagenet_weights([model])[model]
    elif weights is not None and not weights.is_file():
        raise faults.BadOptions(f"--weights {weights} is not a file")
    if frozen and (weights is None or model not in (LITE0, *imagenet.WEIGHTS)):
        raise faults.BadOptions("--frozen trains a head on the features of pretrained weights: "
                                f"give --weights {pretrained.IMAGENET_LITE0}, or {LITE0} or a "
                                f"network of torchvision's as --model, and its --weights")
    return model, weights


def imagenet_weights(models: list[str]) -> dict[str, Path]:
    """The file of ImageNet's weights of each model. Raises BadOptions where there is none."""
    known = [LITE0, *imagenet.WEIGHTS]
    unknown = [model for model in models if model not in known]
    if unknown:
        raise faults.BadOptions(f"--weights {imagenet.IMAGENET}: there are none of "
                                f"{', '.join(unknown)}, but of {', '.join(known)}")
    found = imagenet.weights_paths([model for model in models if model != LITE0])
    return {model: pretrained.weights_path() if model == LITE0 else found[model]
            for model in models}


def build_model(name: str, num_classes: int, weights_path: Path | None):
    """An untrained model, or one that starts from local weights (its head is always new)."""
    build, _ = MODELS[name]
    model = build(num_classes)
    if weights_path is not None:
        load_weights(model, weights_path, name)
    return model


def load_weights(model, path: Path, name: str) -> None:
    """Fill `model` from a local state dict; only its last layer may differ or be missing."""
    import torch

    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
        state = pretrained.in_timms_words(state.get("state_dict", state.get("model", state)))
        state = imagenet.in_todays_words(state)
        shapes = {key: tuple(tensor.shape) for key, tensor in state.items()}
    except Exception as error:  # a file from elsewhere can be wrong in any way
        raise faults.BadOptions(f"--weights {path} is not a state dict "
                                f"({faults.one_line(error)[:120]}): give a .safetensors file, or "
                                "what torch.save wrote of model.state_dict()") from None
    own = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    head = list(own)[-1].rpartition(".")[0] + "."
    kept = {key: tensor for key, tensor in state.items() if not key.startswith(head)}
    wrong = [key for key in sorted(own | shapes) if not key.startswith(head)
             and own.get(key) != shapes.get(key)]
    if wrong:
        raise faults.BadOptions(f"--weights {path} do not fit --model {name}: {len(wrong)} tensors "
                             f"differ, the first is {wrong[0]} ({shapes.get(wrong[0])} in the "
                             f"file, {own.get(wrong[0])} in the model)")
    model.load_state_dict(kept, strict=False)


def without_head(name: str, weights_path: Path):
    """A network of torchvision's up to its last layer, with what `Extractor` asks timm's for."""
    from torch import nn

    model = build_model(name, 1, weights_path)
    head = list(model.state_dict())[-1].rpartition(".")[0]
    model.num_features = model.get_submodule(head).in_features
    model.set_submodule(head, nn.Identity())
    model.pretrained_cfg = {"mean": MEAN, "std": STD,
                            "input_size": (3, imagenet.SIDE_PX, imagenet.SIDE_PX)}
    return model


def extractor_name(model: str) -> str:
    """The name by which `Extractor` knows one of MODELS: timm has networks of the same names."""
    return pretrained.LITE0 if model == LITE0 else OF_TORCHVISION + model
