"""DiracNets: deep networks without shortcuts whose weights contain the identity."""

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from resid_theory._check import check_choice, check_int
from resid_theory.identity import with_identity
from resid_theory.networks.blocks import (
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
def diracnet(
    depth: int,
    *,
    width: int = 1,
    identity: str = "dirac",
    classes: int = 10,
    normalize: bool = True,
    init: str = "kaiming",
    bn_init: str = "ones",
    generator: torch.Generator | int = 0,
) -> nn.Sequential:
    """Build a DiracNet for CIFAR, or the plain net of its shape; depth 6N + 4.

    A stem conv-BN-ReLU, three groups of 2N layers (conv3x3-BN-ReLU) of 16, 32 and 64 times
    ``width`` channels with 2x2 max pools between them, average pool, ``nn.Linear``. Every
    convolution of the groups is W = diag(a) I + diag(b) V / ‖V‖, the channel-changing ones too
    (rule ``"truncate"``). Convolutions have no bias. Pooling comes before the ReLU, which gives the
    same numbers as after it.

    Args:
        depth: 6N + 4.
        width: The paper's k, at least 1; it scales the stem too, as in the authors' code (Table 1
            prints 16).
        identity: ``"dirac"``, or ``"plain"``: no a, b and I, initialized by He's rule.
        classes: Outputs.
        normalize: False for the paper's eq. (4), diag(a) I + V.
        init: Initialization of V: ``"kaiming"`` as in the authors' code, or ``"normal"``, N(0, 1)
            as in the paper. After normalization both have the same distribution, but V turns by
            steps of the learning rate over ‖V‖², 72 to 288 times smaller for N(0, 1) at width 1;
            eq. (4) needs the first.
        bn_init: BatchNorm weights: ``"ones"``, or ``"uniform"``, U(0, 1) as in the authors' code.
        generator: Source of randomness, or a seed. The classifier has torch's uniform distribution.

    Returns:
        An ``nn.Sequential`` from (batch, 3, 32, 32) to (batch, classes), of layers conv0, bn0,
        relu0, conv1, ..., fc.

    Raises:
        ValueError: If no N fits the depth (the nearest two are named), the width is below 1, or a
            name is unknown.

    Source:
        Zagoruyko & Komodakis, arXiv:1706.00388v2, Table 1 and section 3; the authors' code where
        the paper is silent.

    Example:
        >>> sum(p.numel() for p in diracnet(10).parameters())
        75738
    """
    n = depth_to_n(depth, 6, 4)
    channels = [16 * check_int("width", width) * scale for scale in (1, 2, 4)]
    parts: Parts = [
        ("conv0", conv(3, channels[0])), ("bn0", nn.BatchNorm2d(channels[0])), ("relu0", nn.ReLU())
    ]  # fmt: skip
    parts += _groups(channels, [2 * n] * 3, identity, normalize)
    net = sequence(parts + head(channels[-1], classes))
    return draw_net(net, "kaiming", generator, identity_init=init, bn_init=bn_init)


@recorded
def diracnet_imagenet(
    depth: int,
    *,
    identity: str = "dirac",
    classes: int = 1000,
    normalize: bool = True,
    init: str = "kaiming",
    bn_init: str = "ones",
    generator: torch.Generator | int = 0,
) -> nn.Sequential:
    """Build a DiracNet for ImageNet, or the plain net of its shape.

    Conv 7x7 of stride 2, BN, max pool 3x3 of stride 2, ReLU; four groups of 64 to 512 channels with
    2x2 max pools between them; average pool, ``nn.Linear``.

    Args:
        depth: 18 or 34.
        identity: ``"dirac"`` or ``"plain"``.
        classes: Outputs.
        normalize: False for the paper's eq. (4).
        init: Initialization of V, ``"kaiming"`` or ``"normal"``.
        bn_init: BatchNorm weights, ``"ones"`` or ``"uniform"``.
        generator: Source of randomness, or a seed.

    Returns:
        An ``nn.Sequential`` from (batch, 3, 224, 224) to (batch, classes).

    Raises:
        ValueError: If the depth is another one or a name is unknown.

    Source:
        Zagoruyko & Komodakis, arXiv:1706.00388v2, section 3.5; structure from the authors' code.
    """
    parts: Parts = [
        ("conv0", conv(3, 64, 7, stride=2)), ("bn0", nn.BatchNorm2d(64)),
        ("pool0", nn.MaxPool2d(3, stride=2, padding=1)), ("relu0", nn.ReLU()),
    ]  # fmt: skip
    layers = [2 * count for count in imagenet_blocks(depth)]
    parts += _groups([64, 128, 256, 512], layers, identity, normalize)
    net = sequence(parts + head(512, classes))
    return draw_net(net, "kaiming", generator, identity_init=init, bn_init=bn_init)


def _groups(
    channels: Sequence[int], layers: Sequence[int], identity: str, normalize: bool
) -> Iterator[tuple[str, nn.Module]]:
    kind = check_choice("identity", identity, ("dirac", "plain"))
    inputs, number = channels[0], 0
    for group, (outputs, count) in enumerate(zip(channels, layers, strict=True)):
        for position in range(count):
            number += 1
            layer = conv(inputs, outputs)
            yield f"conv{number}", with_identity(layer, kind, rule="truncate", normalize=normalize)
            yield f"bn{number}", nn.BatchNorm2d(outputs)
            if position == count - 1 and group < len(channels) - 1:
                yield f"pool{group + 1}", nn.MaxPool2d(2)
            yield f"relu{number}", nn.ReLU()
            inputs = outputs
