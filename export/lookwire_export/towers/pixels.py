"""Raw bytes to what an image model takes, with as little work as the model's first convolution allows."""

from typing import Any

import torch
from torch import nn

from lookwire_export.reference import ImageRules


class Pixels(nn.Module):  # type: ignore[misc, unused-ignore]  # torch is not installed where types are checked
    """uint8 [batch, S, S, 3] to (p - offset) * scale, float32 [batch, 3, S, S]."""

    def __init__(self, offset: Any = None, scale: Any = None) -> None:
        super().__init__()
        self.register_buffer("offset", offset)
        self.register_buffer("scale", scale)

    def forward(self, pixels: Any) -> Any:
        """Returns the channels as planes."""
        x = pixels.permute(0, 3, 1, 2).float()
        if self.offset is not None:
            x = x - self.offset
        return x if self.scale is None else x * self.scale


def fold(convolution: Any, rules: ImageRules) -> Pixels:
    """Changes a convolution of normalised pixels into one of raw bytes; returns what remains to be done before it.

    With y = w * (p / 255 - mean) / std the weight becomes w / (255 std) and the bias - sum(w mean / std). A convolution
    with padding pads with what a mean pixel is after normalising, 0: there 255 mean is subtracted before it.
    """
    mean, std = _channels(rules)
    weight = convolution.weight.detach().double()
    convolution.weight = nn.Parameter((weight / (255 * std)).float())
    if not any(mean.flatten()):
        return Pixels()
    if any(convolution.padding):
        return Pixels(offset=(255 * mean).float())
    bias = -(weight * mean / std).sum(dim=(1, 2, 3))
    convolution.bias = nn.Parameter((bias if convolution.bias is None else convolution.bias.detach() + bias).float())
    return Pixels()


def fold_into(model: Any, rules: ImageRules) -> Pixels:
    """Does the same with the one convolution of a model that receives the pixels; leaves the model as it is, and
    normalises before it, where there is none.

    Which one that is is seen when the model runs.
    """
    pixels, receivers = torch.zeros(1, 3, rules.size, rules.size), []

    def see(module: Any, inputs: Any) -> None:
        if any(value is pixels for value in inputs) and not any(True for _ in module.children()):
            receivers.append(module)

    hooks = [module.register_forward_pre_hook(see) for module in model.modules()]
    with torch.no_grad():
        model(pixels)
    for hook in hooks:
        hook.remove()
    if [type(module) for module in receivers] == [nn.Conv2d] and not isinstance(receivers[0].padding, str):
        return fold(receivers[0], rules)
    mean, std = _channels(rules)
    return Pixels(offset=(255 * mean).float(), scale=(1 / (255 * std)).float())


def _channels(rules: ImageRules) -> tuple[Any, Any]:
    """Returns mean and std in double precision [1, 3, 1, 1]."""
    mean, std = (torch.tensor(values, dtype=torch.float64)[None, :, None, None] for values in (rules.mean, rules.std))
    return mean, std
