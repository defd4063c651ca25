"""A layer under an adapter gives in one pass what peft's own gives in many; gradients too."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora.layer import LoraLayer

from lungkit.generate.adapted_layers import speed_up


class Layers(torch.nn.Module):
    """A convolution that halves, one without a bias, and two linear layers over the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.halve = torch.nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.mix = torch.nn.Conv2d(6, 8, 1, bias=False)
        self.rise = torch.nn.Linear(8, 5)
        self.end = torch.nn.Linear(5, 3, bias=False)

    def forward(self, x):
        x = self.mix(torch.tanh(self.halve(x)))
        return self.end(torch.tanh(self.rise(x.movedim(1, -1))))


def adapted(kind: str, dtype=torch.float32) -> Layers:
    torch.manual_seed(0)
    net = Layers().to(dtype)
    config = LoraConfig(r=2, lora_alpha=3, use_dora=kind == "dora", init_lora_weights="gaussian",
                        target_modules=["halve", "mix", "rise", "end"])
    inject_adapter_in_model(config, net)
    for name, parameter in net.named_parameters():
        parameter.requires_grad_("lora" in name)
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
            parameter.data += 0.3 * torch.randn(parameter.shape)  # what a training has moved
    return net


def outcome(net: Layers, dtype) -> tuple[torch.Tensor, dict]:
    x = torch.randn((2, 4, 6, 6), generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype != torch.float32):
        y = net(x)
    y.float().pow(2).sum().backward()
    return y.detach().float(), {name: each.grad for name, each in net.named_parameters()
                                if each.requires_grad}


@pytest.mark.parametrize("kind", ["lora", "dora"])
@pytest.mark.parametrize(("dtype", "within"), [(torch.float32, 1e-5), (torch.bfloat16, 0.06)])
def test_outputs_and_gradients_are_those_of_peft(kind, dtype, within):
    slow = adapted(kind, dtype)
    fast = copy.deepcopy(slow)
    speed_up(fast)
    changed = [m for m in fast.modules() if isinstance(m, LoraLayer) and "forward" in vars(m)]
    assert len(changed) == (0 if (kind, dtype) == ("lora", torch.bfloat16) else 4)
    (y, gradients), (z, others) = outcome(slow, dtype), outcome(fast, dtype)
    assert (y - z).abs().max() <= within * y.abs().max()
    assert gradients.keys() == others.keys() and len(gradients) == (12 if kind == "dora" else 8)
    for name, gradient in gradients.items():
        assert gradient.abs().max() > 0, name
        assert (gradient - others[name]).abs().max() <= within * gradient.abs().max(), name


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_an_update_below_a_rounded_weights_last_bit_is_not_lost(kind):
    """On a GPU weights are bfloat16: a sum with them would take nothing below a 256th of them."""
    net = adapted(kind, torch.bfloat16)
    speed_up(net)
    layer, turns = net.rise, torch.tensor([1.0, -1] * 4)
    layer.get_base_layer().weight.data.fill_(1.0)
    layer.get_base_layer().bias.data.zero_()
    layer.lora_A["default"].weight.data.copy_(turns.expand(2, 8))
    layer.lora_B["default"].weight.data.fill_(1e-4)
    if kind == "dora":
        layer.lora_magnitude_vector["default"].weight.data.fill_(8 ** 0.5)  # the weight's own
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(turns[None]).float()  # the weight gives 0
    assert found.flatten().tolist() == pytest.approx([8 * 2 * 1e-4 * 1.5] * 5, rel=0.02)
