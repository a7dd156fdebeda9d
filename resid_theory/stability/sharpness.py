"""How much noise in all weights a net bears: PAC-Bayes sharpness."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from resid_theory._check import as_generator, check_int, check_positive
from resid_theory.data.batching import batches
from resid_theory.losses import Loss, check_target, loss_function
from resid_theory.runtime.preserve import preserved
from resid_theory.stability.net_inputs import checked_net
from resid_theory.stability.norms import row_norms

__all__ = ["pac_bayes_sharpness"]


def pac_bayes_sharpness(
    net: nn.Module,
    loss: str | Loss,
    data: Any,
    *,
    increase: float = 0.1,
    draws: int = 10,
    tolerance: float = 0.01,
    generator: torch.Generator | int = 0,
) -> float:
    r"""Largest σ for which normal noise on all parameters raises the loss by little.

    .. math:: \sigma^* = \max\{\sigma : E_{N \sim N(0, \sigma^2 I)} L(w + N) - L(w) \le t\}

    Found by bisection, the same draws for every σ. 1/σ² is the capacity.

    Args:
        net: Any module; its parameters are not written to.
        loss: As everywhere: a name or a callable ``(output, target) -> scalar mean``.
        data: A pair (x, y), an object with ``.x`` and ``.y``, or a loader.
        increase: t, in units of the loss, above 0.
        draws: Draws of the noise.
        tolerance: Relative error of σ.
        generator: Source of the noise, on the CPU, or a seed.

    Returns:
        σ, in units of the weights; inf where no noise up to 2^40 times the weights' root mean
        square matters.

    Raises:
        ValueError: If data do not fit the net or a number is not above 0.

    Source:
        Keskar et al., arXiv:1609.04836; Neyshabur et al., arXiv:1706.08947, section 2.4; Jiang et
        al., arXiv:1912.02178, appendix C (threshold 0.1).
    """
    checked_net(net)
    increase, tolerance = (
        check_positive("increase", increase),
        check_positive("tolerance", tolerance),
    )
    parameters = {name: p.detach() for name, p in net.named_parameters() if p.requires_grad}
    if not parameters:
        raise ValueError("net: has no trainable parameter, needs one that noise can move")
    seeds = _seeds(check_int("draws", draws), as_generator(generator))
    scale = _root_mean_square(parameters.values()) or 1.0
    with preserved(net), torch.no_grad():
        parts = list(batches(data))
        clean = _risk(net, loss, parts, parameters)

        def harmless(sigma: float) -> bool:
            risks = [_risk(net, loss, parts, _moved(parameters, sigma, seed)) for seed in seeds]
            return sum(risks) / len(risks) - clean <= increase  # nan is not

        low, high = scale, scale
        while high < 2.0**40 * scale and harmless(high):
            low, high = high, 2 * high
        if harmless(high):
            return math.inf
        while not harmless(low) and low > 2.0**-60 * scale:
            low, high = low / 2, low
        while high / low > 1 + tolerance:
            middle = math.sqrt(low * high)
            low, high = (middle, high) if harmless(middle) else (low, middle)
    return low


def _seeds(draws: int, source: torch.Generator) -> list[int]:
    return torch.randint(2**40, (draws,), generator=source).tolist()


def _root_mean_square(tensors: Any) -> float:
    tensors = list(tensors)
    total = sum(float(row_norms(t.reshape(1, -1))) ** 2 for t in tensors)
    return math.sqrt(total / sum(t.numel() for t in tensors))


def _moved(parameters: dict[str, Tensor], sigma: float, seed: int) -> dict[str, Tensor]:
    source = torch.Generator().manual_seed(seed)
    return {
        name: p + sigma * torch.randn(p.shape, generator=source, dtype=torch.float64).to(p)
        for name, p in parameters.items()
    }


def _risk(net: nn.Module, loss: str | Loss, parts: Any, parameters: dict[str, Tensor]) -> float:
    """Mean loss over the samples with these parameters."""
    function, total, count = loss_function(loss), 0.0, 0
    like = next(iter(parameters.values()))
    for x, y in parts:
        output = functional_call(net, parameters, (x.to(like.device, copy=True),))
        target = y.to(like.device)
        check_target(loss, output, target)
        total += len(x) * float(function(output, target))
        count += len(x)
    return total / count
