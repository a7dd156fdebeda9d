"""Pre-activation (wide) residual nets, with any number of convolutions under one shortcut."""

import torch
from torch import nn

from resid_theory._check import check_choice, check_int
from resid_theory.identity import with_identity
from resid_theory.networks.blocks import (
    Block,
    Parts,
    conv,
    depth_to_n,
    draw_net,
    head,
    recorded,
    sequence,
)


@recorded
def preresnet(
    depth: int,
    *,
    width: int = 1,
    shortcut_depth: int = 2,
    identity: str = "plain",
    classes: int = 10,
    std: float = 0.01,
    generator: torch.Generator | int = 0,
) -> nn.Sequential:
    """Build a pre-activation residual net of depth 6N + 4; of width k, WRN-depth-k.

    A stem to 16 channels, three groups of 2N layers BN-ReLU-conv3x3 of 16, 32 and 64 times
    ``width`` channels, the first of groups 2 and 3 of stride 2; BN, ReLU, average pool,
    ``nn.Linear``. Each ``shortcut_depth`` layers under one shortcut are a block; where the channels
    change, the block's first BN-ReLU stands before a 1x1 convolution on the shortcut. The layers,
    hence the parameters, are the same for every ``shortcut_depth``.

    Args:
        depth: 6N + 4; 28 is the paper's ResNet.
        width: k, at least 1; the stem stays at 16.
        shortcut_depth: Convolutions under one shortcut, a divisor of 2N.
        identity: Weights of the 3x3 convolutions in blocks: ``"plain"``; ``"residual"``,
            W = V + I with V ~ N(0, std²) whatever the shape (rule ``"truncate"``); ``"dirac"``.
        classes: Outputs.
        std: Of V in ``"residual"``; 0 is the all-zero start. The paper varies it from 1e-8 to 1;
            the default is a choice of this toolkit.
        generator: Source of randomness, or a seed.

    Returns:
        An ``nn.Sequential`` from (batch, 3, 32, 32) to (batch, classes).

    Raises:
        ValueError: If no N fits the depth (the nearest two are named), ``shortcut_depth`` does not
            divide 2N, the width is below 1, ``std`` is negative or a name is unknown.

    Source:
        He et al., arXiv:1603.05027; Zagoruyko & Komodakis, arXiv:1605.07146, Table 1 (WRN);
        arXiv:1706.00388v2, section 3.4 (W = I + V); Li et al., arXiv:1611.01186 (shortcut depth).

    Example:
        >>> nets = [preresnet(16, shortcut_depth=n) for n in (1, 2, 4)]
        >>> {sum(p.numel() for p in net.parameters()) for net in nets}
        {175066}
    """
    n = depth_to_n(depth, 6, 4)
    if (2 * n) % check_int("shortcut_depth", shortcut_depth):
        fitting = ", ".join(str(k) for k in range(1, 2 * n + 1) if 2 * n % k == 0)
        raise ValueError(
            f"shortcut_depth: got {shortcut_depth} for {2 * n} layers a group at depth {depth}, "
            f"needs one of {fitting}"
        )
    check_choice("identity", identity, ("plain", "residual", "dirac"))
    widths = [16 * check_int("width", width) * scale for scale in (1, 2, 4)]
    blocks = [w for w in widths for _ in range(2 * n // shortcut_depth)]
    parts: Parts = [("conv0", conv(3, 16))]
    inputs = 16
    for number, outputs in enumerate(blocks, start=1):
        halves = outputs == inputs * 2 and inputs in widths
        block = _block(inputs, outputs, shortcut_depth, 2 if halves else 1, identity)
        parts.append((f"block{number}", block))
        inputs = outputs
    parts += [("bn", nn.BatchNorm2d(inputs)), ("relu", nn.ReLU()), *head(inputs, classes)]
    # Only the direction of a Dirac weight counts, but std would change the size of its steps.
    init = "normal" if identity == "residual" else "kaiming"
    return draw_net(sequence(parts), "kaiming", generator, identity_init=init, std=std)


def _block(inputs: int, outputs: int, count: int, stride: int, identity: str) -> Block:
    first: Parts = [("bn1", nn.BatchNorm2d(inputs)), ("relu1", nn.ReLU())]
    branch: Parts = []
    for layer in range(1, count + 1):
        source = inputs if layer == 1 else outputs
        if layer > 1:
            branch += [(f"bn{layer}", nn.BatchNorm2d(source)), (f"relu{layer}", nn.ReLU())]
        weights = conv(source, outputs, stride=stride if layer == 1 else 1)
        branch.append((f"conv{layer}", with_identity(weights, identity, rule="truncate")))
    if inputs == outputs:
        return Block(sequence(first + branch))
    projection = conv(inputs, outputs, 1, stride=stride)
    return Block(sequence(branch), projection, before=sequence(first))
