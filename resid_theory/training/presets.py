"""Kinds of nets that have a recipe of their own, by name."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from resid_theory._check import check_choice, check_int, check_seed
from resid_theory.networks import diracnet, full_net, preresnet, simplified_net
from resid_theory.training.recipe import DIRACNETS, NOISE_STABILITY, NOISE_STABILITY_BN, Recipe


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A family of nets: its public builder, usual depth and the paper's recipe on CIFAR-10."""

    builder: Callable[..., nn.Sequential]
    depth: int
    recipe: Recipe

    @property
    def options(self) -> tuple[str, ...]:
        """Arguments of the builder, without seed and number of classes."""
        names = inspect.signature(self.builder).parameters
        return tuple(name for name in names if name not in ("classes", "generator"))


# A new kind of net is a row here.
KINDS: Mapping[str, Kind] = {
    "simplified": Kind(builder=simplified_net, depth=20, recipe=NOISE_STABILITY),
    "full": Kind(builder=full_net, depth=20, recipe=NOISE_STABILITY_BN),
    "diracnet": Kind(builder=diracnet, depth=28, recipe=DIRACNETS),
    # The baseline of the DiracNets paper, trained alike.
    "preresnet": Kind(builder=preresnet, depth=28, recipe=DIRACNETS),
}


def net_of(kind: str, *, seed: int = 0, classes: int = 10, **options: Any) -> nn.Sequential:
    """Build a net by the name of its kind; an option that is None keeps the builder's default."""
    chosen = KINDS[check_choice("net", kind, list(KINDS))]
    given = {name: value for name, value in options.items() if value is not None}
    for name, value in given.items():
        if name not in chosen.options:
            raise ValueError(
                f"{name}: got {value!r}, which {kind!r} does not have; needs one of "
                f"{', '.join(chosen.options)}"
            )
    return chosen.builder(
        **{"depth": chosen.depth, **given},
        classes=check_int("classes", classes, 2),
        generator=check_seed("seed", seed),
    )
