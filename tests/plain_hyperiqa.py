"""HyperIQA as its authors' code has it, written down plainly from the facts about it: one patch at a time, tensors by their names.

Slow on purpose. The ResNet-50 is torchvision's; everything after it is loops and sums.
"""

from __future__ import annotations

import torch
import torchvision
from torch import Tensor, nn

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet
TARGET = [(112, 224), (56, 112), (28, 56), (14, 28), (1, 14)]  # (out, in) of the target network's layers
HEAD = {  # every tensor after the ResNet: name and shape
    **{f"res.lda{k}_pool.0.weight": (wide, channels, 1, 1) for k, wide, channels in ((1, 16, 256), (2, 32, 512), (3, 64, 1024))},
    **{f"res.lda{k}_fc.weight": (wide, length) for k, wide, length in ((1, 16, 1024), (2, 16, 512), (3, 16, 256), (4, 176, 2048))},
    **{f"res.lda{k}_fc.bias": (wide,) for k, wide in ((1, 16), (2, 16), (3, 16), (4, 176))},
    **{f"conv1.{k}.weight": (thin, wide, 1, 1) for k, thin, wide in ((0, 1024, 2048), (2, 512, 1024), (4, 112, 512))},
    **{f"conv1.{k}.bias": (thin,) for k, thin in ((0, 1024), (2, 512), (4, 112))},
    **{f"fc{k}w_conv.weight": (channels, 112, 3, 3) for k, channels in ((1, 512), (2, 128), (3, 32), (4, 8))},
    **{f"fc{k}w_conv.bias": (channels,) for k, channels in ((1, 512), (2, 128), (3, 32), (4, 8))},
    **{f"fc{k}b_fc.weight": (out, 112) for k, out in ((1, 112), (2, 56), (3, 28), (4, 14))},
    **{f"fc{k}b_fc.bias": (out,) for k, out in ((1, 112), (2, 56), (3, 28), (4, 14))},
    **{"fc5w_fc.weight": (14, 112), "fc5w_fc.bias": (14,), "fc5b_fc.weight": (1, 112), "fc5b_fc.bias": (1,)},
}


def resnet() -> nn.Module:
    network = torchvision.models.resnet50(weights=None)
    del network.fc
    return network


def random_checkpoint(seed: int = 0) -> dict[str, Tensor]:
    """Such a state dict, its weights random, its BatchNorm as if trained: signals neither vanish nor saturate."""
    torch.manual_seed(seed)
    network = resnet()
    for name, layer in network.named_modules():
        if isinstance(layer, nn.BatchNorm2d):
            branch = name.endswith("bn3")  # the branches of a trained ResNet are quiet; loud ones would blow up every rounding error
            nn.init.uniform_(layer.weight, *((0.1, 0.3) if branch else (0.5, 1.5)))
            nn.init.normal_(layer.bias, std=0.1)
            layer.momentum = 1.0
    with torch.no_grad():
        maps(network.train(), normalised(smooth_pixels(4, seed=1), torch.float32))
    head = {}
    for name, shape in HEAD.items():
        gain = 0.01 if name.endswith("w_conv.weight") else 1.0  # written weights so small that no sigmoid saturates
        fan_in = torch.Size(shape[1:]).numel()
        head[name] = gain * torch.randn(shape) / fan_in**0.5 if len(shape) > 1 else 0.1 * torch.randn(shape)
    return {f"res.{name}": value for name, value in network.state_dict().items()} | head


def smooth_pixels(number: int, seed: int = 0) -> Tensor:
    """uint8 [number, 3, 224, 224], random and smooth, so that maps are not all alike."""
    coarse = torch.randint(0, 256, (number, 3, 28, 28), generator=torch.Generator().manual_seed(seed)).float()
    return nn.functional.interpolate(coarse, size=224, mode="bilinear").to(torch.uint8)


def normalised(pixels: Tensor, dtype: torch.dtype) -> Tensor:
    """uint8 [n, 3, height, width] with ImageNet's mean and standard deviation."""
    mean, std = torch.tensor(MEAN, dtype=dtype), torch.tensor(STD, dtype=dtype)
    return (pixels.to(dtype) / 255 - mean[:, None, None]) / std[:, None, None]


def maps(network: nn.Module, patches: Tensor) -> list[Tensor]:
    found, signal = [], network.maxpool(network.relu(network.bn1(network.conv1(patches))))
    for stage in (network.layer1, network.layer2, network.layer3, network.layer4):
        signal = stage(signal)
        found.append(signal)
    return found


def plain_scores(network: nn.Module, head: dict[str, Tensor], patches: Tensor) -> Tensor:
    """Scores [n] of normalised patches [n, 3, 224, 224]."""
    four = maps(network, patches)
    return torch.stack([_score(head, [m[patch] for m in four]) for patch in range(len(patches))])


def _score(head: dict[str, Tensor], four: list[Tensor]) -> Tensor:
    """One patch's score from its maps [channels, size, size], sizes 56, 28, 14 and 7."""
    narrow = [cells_of(pointwise(head[f"res.lda{k}_pool.0.weight"], four[k - 1]), 7) for k in (1, 2, 3)] + [four[3].mean(dim=(1, 2))]
    vector = torch.cat([_line(head, f"res.lda{k + 1}_fc", cells.reshape(-1)) for k, cells in enumerate(narrow)])

    top = four[3]
    for k in (0, 2, 4):
        top = (pointwise(head[f"conv1.{k}.weight"], top) + head[f"conv1.{k}.bias"][:, None, None]).clamp(min=0)
    pooled = top.mean(dim=(1, 2))
    weights = [three_by_three(head[f"fc{k}w_conv.weight"], head[f"fc{k}w_conv.bias"], top) for k in (1, 2, 3, 4)]
    weights.append(_line(head, "fc5w_fc", pooled))
    biases = [_line(head, f"fc{k}b_fc", pooled) for k in (1, 2, 3, 4, 5)]

    hidden = vector
    for layer, (out, into) in enumerate(TARGET):
        hidden = weights[layer].reshape(out, into) @ hidden + biases[layer]
        if layer < 4:
            hidden = (1 + torch.tanh(hidden / 2)) / 2  # the sigmoid, safe for large numbers
    return hidden[0]


def _line(head: dict[str, Tensor], name: str, vector: Tensor) -> Tensor:
    return head[f"{name}.weight"] @ vector + head[f"{name}.bias"]


def cells_of(plane: Tensor, window: int) -> Tensor:
    """[channels, size, size] -> the mean of each window: [channels, size / window, size / window]."""
    number = plane.shape[1] // window
    rows = []
    for y in range(number):
        cells = [plane[:, y * window : (y + 1) * window, x * window : (x + 1) * window].mean(dim=(1, 2)) for x in range(number)]
        rows.append(torch.stack(cells, dim=1))
    return torch.stack(rows, dim=1)


def pointwise(weight: Tensor, plane: Tensor) -> Tensor:
    """A 1x1 convolution of one [channels, height, width]."""
    return torch.einsum("oc,chw->ohw", weight[:, :, 0, 0], plane)


def three_by_three(weight: Tensor, bias: Tensor, plane: Tensor) -> Tensor:
    """A 3x3 convolution of one [channels, 7, 7] with a border of zeros."""
    height, width = plane.shape[1:]
    bordered = torch.zeros(plane.shape[0], height + 2, width + 2, dtype=plane.dtype)
    bordered[:, 1:-1, 1:-1] = plane
    out = bias[:, None, None]
    for dy in range(3):
        for dx in range(3):
            out = out + torch.einsum("oc,chw->ohw", weight[:, :, dy, dx], bordered[:, dy : dy + height, dx : dx + width])
    return out
