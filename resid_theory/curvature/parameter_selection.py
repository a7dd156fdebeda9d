"""Selection of the parameters that a matrix has rows for: by name, by pattern, or as tensors."""

import difflib
import fnmatch
import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

__all__ = ["select_parameters", "trainable_by_name"]


def trainable_by_name(net: nn.Module) -> dict[str, Tensor]:
    """The trainable parameters by name, at least one, in the order of ``parameters_to_vector``."""
    known: dict[str, Tensor] = {name: p for name, p in net.named_parameters() if p.requires_grad}
    if not known:
        raise ValueError("net: has no trainable parameters, needs at least one requires_grad=True")
    return known


def select_parameters(argument: str, given: Any, known: Mapping[str, Tensor]) -> list[str]:
    """The names of the parameters given (by name, pattern or tensor; None: all), in known order."""
    if given is None:
        return list(known)
    single = isinstance(given, (str, Tensor))
    parts = [given] if single else list(given) if isinstance(given, Iterable) else []
    if not parts:
        raise ValueError(
            f"{argument}: got {given!r}, needs names, patterns or parameters, at least one"
        )
    found = {name for part in parts for name in _matches(argument, part, known)}
    return [name for name in known if name in found]


def _matches(argument: str, part: Any, known: Mapping[str, Tensor]) -> list[str]:
    if isinstance(part, Tensor):
        names = [name for name, parameter in known.items() if parameter is part]
        if names:
            return names
        raise ValueError(
            f"{argument}: a tensor of shape {tuple(part.shape)} is no trainable parameter of the "
            "net; pass the parameter itself, e.g. net.fc.weight, with requires_grad=True"
        )
    if not isinstance(part, str):
        raise ValueError(f"{argument}: got {type(part).__name__}, needs a name or a parameter")
    # A parametrized weight goes by its own name too: "fc.parametrizations.weight.original" is
    # "fc.weight".
    aliases = {
        name: (name, re.sub(r"parametrizations\.(.+)\.original\d*$", r"\1", name)) for name in known
    }
    names = [
        name
        for name, both in aliases.items()
        if part in both or any(fnmatch.fnmatchcase(alias, part) for alias in both)
    ]
    if names:
        return names
    every = dict.fromkeys(alias for both in aliases.values() for alias in both)
    close = difflib.get_close_matches(part, every, n=1, cutoff=0.0)[0]
    raise ValueError(
        f"{argument}: no trainable parameter is called {part!r}; the nearest is {close!r}"
    )
