"""Networks with BatchNorm and two convolutions per block, plain or with identity shortcuts."""

import torch
from torch import nn

from resid_theory._check import check_choice
from resid_theory.networks.blocks import (
    Block,
    IdentityShortcut,
    Parts,
    conv,
    depth_to_n,
    draw_net,
    head,
    imagenet_blocks,
    recorded,
    sequence,
)


@recorded
def full_net(
    depth: int,
    *,
    shortcut: bool = True,
    doubling: str = "pad",
    classes: int = 10,
    generator: torch.Generator | int = 0,
) -> nn.Sequential:
    """Build a fully-fledged plain or residual net of depth 6n + 2.

    A stem conv-BN-ReLU to 16 channels, then 3n blocks of (conv3x3-BN-ReLU) twice, of 16, 32 and 64
    channels, the first of stages 2 and 3 of stride 2; the shortcut joins before the last ReLU of a
    block. Convolutions have no bias. A block is one module, block1, block2, ...

    Args:
        depth: 6n + 2; the paper has 20.
        shortcut: False for the plain net: the same blocks without the identity.
        doubling: Shortcut of the two blocks that double the channels, which the paper leaves open:
            ``"pad"`` (He et al.'s option A, zero channels), ``"dup"`` (the channels twice) or
            ``"proj"`` (option B, 1x1 convolution and BatchNorm, which adds parameters).
        classes: Outputs.
        generator: Source of randomness, or a seed; convolutions have ``"kaiming"`` weights (KWI).

    Returns:
        An ``nn.Sequential`` from (batch, 3, 32, 32) to (batch, classes).

    Raises:
        ValueError: If no n fits the depth (the nearest two are named) or a name is unknown.

    Source:
        Yu & Tomasi, arXiv:1905.10944, section 5; He et al., arXiv:1512.03385, section 4.2.

    Example:
        >>> net = full_net(20)
        >>> sum(p.numel() for p in net.parameters()), net[3:6](torch.zeros(1, 16, 8, 8)).shape
        (269722, torch.Size([1, 16, 8, 8]))
    """
    check_choice("doubling", doubling, ("pad", "dup", "proj"))
    n = depth_to_n(depth, 6, 2)
    parts: Parts = [
        ("conv0", conv(3, 16)), ("bn0", nn.BatchNorm2d(16)), ("relu0", nn.ReLU())
    ]  # fmt: skip
    inputs = 16
    for number, outputs in enumerate([16] * n + [32] * n + [64] * n, start=1):
        parts.append((f"block{number}", _block(inputs, outputs, doubling if shortcut else None)))
        inputs = outputs
    return draw_net(sequence(parts + head(inputs, classes)), "kaiming", generator)


def _block(inputs: int, outputs: int, doubling: str | None) -> nn.Module:
    stride = outputs // inputs
    parts: Parts = [
        ("conv1", conv(inputs, outputs, stride=stride)), ("bn1", nn.BatchNorm2d(outputs)),
        ("relu1", nn.ReLU()),
        ("conv2", conv(outputs, outputs)), ("bn2", nn.BatchNorm2d(outputs)),
    ]  # fmt: skip
    if doubling is None:
        return sequence([*parts, ("relu2", nn.ReLU())])
    shortcut: nn.Module | None = None
    if stride > 1 and doubling == "proj":
        projection = conv(inputs, outputs, 1, stride=stride)
        shortcut = sequence([("conv", projection), ("bn", nn.BatchNorm2d(outputs))])
    elif stride > 1:
        rule = "truncate" if doubling == "pad" else "repeat"
        shortcut = IdentityShortcut(outputs, stride, rule)
    return Block(sequence(parts), shortcut, after=nn.ReLU())


@recorded
def resnet_imagenet(
    depth: int, *, classes: int = 1000, generator: torch.Generator | int = 0
) -> nn.Sequential:
    """Build ResNet-18 or ResNet-34 for ImageNet, the baseline of ImageNet DiracNets.

    Args:
        depth: 18 or 34.
        classes: Outputs.
        generator: Source of randomness, or a seed; convolutions have ``"kaiming"`` weights.

    Returns:
        An ``nn.Sequential`` from (batch, 3, 224, 224) to (batch, classes).

    Raises:
        ValueError: If the depth is another one.

    Source:
        He et al., arXiv:1512.03385, Table 1, option B.
    """
    parts: Parts = [
        ("conv0", conv(3, 64, 7, stride=2)), ("bn0", nn.BatchNorm2d(64)), ("relu0", nn.ReLU()),
        ("pool0", nn.MaxPool2d(3, stride=2, padding=1)),
    ]  # fmt: skip
    widths = [64 * 2**group for group, n in enumerate(imagenet_blocks(depth)) for _ in range(n)]
    for number, (inputs, outputs) in enumerate(zip([64, *widths], widths, strict=False), start=1):
        parts.append((f"block{number}", _block(inputs, outputs, "proj")))
    return draw_net(sequence(parts + head(512, classes)), "kaiming", generator)
