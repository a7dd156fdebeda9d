"""Networks of one convolution per block, without BatchNorm: only the place of the identity differs.

Those of "Identity Connections in Residual Nets Improve Noise Stability", Appendix A.
"""

import torch
from torch import nn

from resid_theory._check import check_choice
from resid_theory.identity import AddIdentity, with_identity
from resid_theory.initializations import initializations_for
from resid_theory.networks.blocks import Parts, conv, depth_to_n, draw_net, head, recorded, sequence

_WIDTHS = (16, 32, 64)
_IDENTITIES = ("plain", "residual", "explicit", "dominant", "dominant_half", "dominant_upper")


@recorded
def simplified_net(
    depth: int,
    *,
    identity: str = "plain",
    classes: int = 10,
    init: str | None = None,
    generator: torch.Generator | int = 0,
) -> nn.Sequential:
    """Build a simplified plain or residual net: convolution and ReLU, depth 3n + 2, no BatchNorm.

    A stem to 16 channels, three groups of n convolutions (3x3, with bias) of 16, 32 and 64
    channels, the first of groups 2 and 3 of stride 2; average pool; ``nn.Linear``. The identity
    goes around every convolution of the groups, doubling ones too (rule ``"repeat"``), not around
    the stem. Layers are named conv0, relu0, conv1, ..., pool, flatten, fc.

    Args:
        depth: 3n + 2; the paper has 20, 32 and 44.
        identity: ``"plain"``; ``"residual"``, W = V + I as one weight; ``"explicit"``, the same net
            with Id(x) added to each convolution's output; ``"dominant"``, residual with V zero off
            the dominant paths; ``"dominant_half"``, the same except that the lower halves of both
            doubling kernels, the new channels, read all inputs; ``"dominant_upper"``, dominant in
            the upper half of the groups' convolutions, residual in the lower 3n // 2.
        classes: Outputs.
        init: Initialization of the convolutions: ``"kaiming"`` (KWI) or ``"hardt_ma"`` (HMWI); by
            default KWI for plain nets and HMWI for the others, as in the paper. The classifier has
            torch's uniform distribution.
        generator: Source of randomness, or a seed. Equal seeds give plain, residual and explicit
            nets the same weights, up to their scale, and ``"dominant_upper"`` nets those of the
            residual net in their lower half.

    Returns:
        An ``nn.Sequential`` from (batch, 3, 32, 32) to (batch, classes).

    Raises:
        ValueError: If no n fits the depth (the nearest two are named) or a name is unknown.

    Source:
        Yu & Tomasi, arXiv:1905.10944, section 3 and Appendices A and D.3. D.3 does not say
        which lower halves are dense: ``"dominant_half"`` reads halves of kernels, as elsewhere in
        D.3, ``"dominant_upper"`` halves of nets.

    Example:
        >>> net = simplified_net(20, identity="residual")
        >>> sum(p.numel() for p in net.parameters()), net[2:4](torch.zeros(1, 16, 32, 32)).shape
        (269034, torch.Size([1, 16, 32, 32]))
    """
    check_choice("identity", identity, _IDENTITIES)
    if init is None:
        init = "kaiming" if identity == "plain" else "hardt_ma"
    check_choice("init", init, initializations_for("kernel", scaled=False))
    n = depth_to_n(depth, 3, 2)
    parts: Parts = [("conv0", conv(3, 16, bias=True)), ("relu0", nn.ReLU())]
    inputs = 16
    for layer in range(1, 3 * n + 1):
        outputs = _WIDTHS[(layer - 1) // n]
        block: nn.Module = conv(inputs, outputs, stride=outputs // inputs, bias=True)
        if identity == "explicit":
            block = AddIdentity(block)
        else:
            lower = identity == "dominant_upper" and layer <= 3 * n // 2
            kind = "residual" if lower else identity.partition("_")[0]
            dense = outputs - inputs if identity == "dominant_half" else 0
            with_identity(block, kind, dense=dense)
        parts += [(f"conv{layer}", block), (f"relu{layer}", nn.ReLU())]
        inputs = outputs
    return draw_net(sequence(parts + head(inputs, classes)), init, generator)
