"""Trunks with BatchNorm and two convolutions a block, plain or under an identity shortcut."""

import torch
from torch import nn

from resid_theory._check import check_choice
from resid_theory.networks.blocks import (
    Block,
    IdentityShortcut,
    conv,
    draw_net,
    head,
    layers_of,
    norm,
    recorded,
    sequence,
    units,
)

__all__ = ["full_net", "resnet_imagenet"]

DOUBLINGS = ("pad", "dup", "proj")


@recorded
def full_net(
    depth: int,
    *,
    shortcut: bool = True,
    doubling: str = "pad",
    classes: int = 10,
    generator: torch.Generator | int = 0,
) -> nn.Sequential:
    """A fully-fledged plain or residual net of depth 6n + 2.

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
        generator: Source of randomness, or a seed; convolutions are drawn by He's law (KWI).

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
    check_choice("doubling", doubling, DOUBLINGS)
    n = units(depth, 6, 2)
    parts: list[tuple[str, nn.Module]] = [
        ("conv0", conv(3, 16)), ("bn0", norm(16)), ("relu0", nn.ReLU())
    ]  # fmt: skip
    inputs = 16
    for number, outputs in enumerate([16] * n + [32] * n + [64] * n, start=1):
        parts.append((f"block{number}", _block(inputs, outputs, doubling if shortcut else None)))
        inputs = outputs
    return draw_net(sequence(parts + head(inputs, classes)), "kaiming", generator)


def _block(inputs: int, outputs: int, doubling: str | None) -> nn.Module:
    stride = outputs // inputs
    parts: list[tuple[str, nn.Module]] = [
        ("conv1", conv(inputs, outputs, stride=stride)), ("bn1", norm(outputs)),
        ("relu1", nn.ReLU()),
        ("conv2", conv(outputs, outputs)), ("bn2", norm(outputs)),
    ]  # fmt: skip
    if doubling is None:
        return sequence([*parts, ("relu2", nn.ReLU())])
    return Block(sequence(parts), _shortcut(inputs, outputs, doubling), after=nn.ReLU())


def _shortcut(inputs: int, outputs: int, doubling: str) -> nn.Module:
    stride = outputs // inputs
    if stride == 1:
        return nn.Identity()
    if doubling == "proj":
        projection = conv(inputs, outputs, 1, stride=stride)
        return sequence([("conv", projection), ("bn", norm(outputs))])
    return IdentityShortcut(outputs, stride, "truncate" if doubling == "pad" else "repeat")


@recorded
def resnet_imagenet(
    depth: int, *, classes: int = 1000, generator: torch.Generator | int = 0
) -> nn.Sequential:
    """ResNet-18 or ResNet-34 for ImageNet, the baseline of ImageNet DiracNets.

    Args:
        depth: 18 or 34.
        classes: Outputs.
        generator: Source of randomness, or a seed; convolutions are drawn by He's law, fan-in.

    Returns:
        An ``nn.Sequential`` from (batch, 3, 224, 224) to (batch, classes).

    Raises:
        ValueError: If the depth is another one.

    Source:
        He et al., arXiv:1512.03385, Table 1, option B.
    """
    blocks = layers_of({18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}, depth)
    parts: list[tuple[str, nn.Module]] = [
        ("conv0", conv(3, 64, 7, stride=2)), ("bn0", norm(64)), ("relu0", nn.ReLU()),
        ("pool0", nn.MaxPool2d(3, stride=2, padding=1)),
    ]  # fmt: skip
    widths = [64 * 2**stage for stage, count in enumerate(blocks) for _ in range(count)]
    for number, (inputs, outputs) in enumerate(zip([64, *widths], widths, strict=False), start=1):
        parts.append((f"block{number}", _block(inputs, outputs, "proj")))
    return draw_net(sequence(parts + head(512, classes)), "kaiming", generator)
