"""Which parameters a matrix has rows for: all, some by name or pattern, or tensors."""

import difflib
import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

__all__ = ["chosen", "named"]


def named(net: nn.Module) -> dict[str, Tensor]:
    """The trainable parameters by name, each once, in the order of ``parameters_to_vector``.

    Args:
        net: The module.

    Returns:
        Names, such as ``"conv1.weight"``, and tensors.
    """
    return {name: p for name, p in net.named_parameters() if p.requires_grad}


def chosen(argument: str, given: Any, known: Mapping[str, Tensor]) -> list[str]:
    """The names that a choice means.

    Args:
        argument: Its name, for messages.
        given: None for all; a name, a shell-style pattern (``"conv*.weight"``) or a parameter, or
            several of them. The original of a parametrized weight also goes by the weight's name.
        known: What there is to choose from, in order.

    Returns:
        Names in the order of ``known``, whatever the order given.

    Raises:
        ValueError: If a name, pattern or tensor chooses nothing; the nearest name is given.
    """
    if not known:
        raise ValueError("net: has no trainable parameters, needs at least one requires_grad=True")
    if given is None:
        return list(known)
    parts = [given] if isinstance(given, (str, Tensor)) else _listed(argument, given)
    found = {name for part in parts for name in _meant(argument, part, known)}
    return [name for name in known if name in found]


def _listed(argument: str, given: Any) -> Sequence[Any]:
    if not isinstance(given, Iterable) or not (parts := list(given)):
        raise ValueError(
            f"{argument}: got {given!r}, needs names, patterns or parameters, at least one"
        )
    return parts


def _meant(argument: str, part: Any, known: Mapping[str, Tensor]) -> list[str]:
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
    names = [
        name
        for name in known
        if part in (name, _short(name))
        or any(fnmatch.fnmatchcase(alias, part) for alias in (name, _short(name)))
    ]
    if names:
        return names
    aliases = {alias: None for n in known for alias in (n, _short(n))}
    close = difflib.get_close_matches(part, aliases, n=1, cutoff=0.0)[0]
    raise ValueError(
        f"{argument}: no trainable parameter is called {part!r}; the nearest is {close!r}"
    )


def _short(name: str) -> str:
    """A parametrized weight's own name: "fc.parametrizations.weight.original" is "fc.weight"."""
    return re.sub(r"parametrizations\.(.+)\.original\d*$", r"\1", name)
