"""Selection of the parameters that a matrix has rows for: by name, by pattern, or as tensors."""

import difflib
import fnmatch
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn


def trainable_by_name(net: nn.Module) -> dict[str, Tensor]:
    """The trainable parameters by name, at least one, in the order of ``parameters_to_vector``."""
    known: dict[str, Tensor] = {name: p for name, p in net.named_parameters() if p.requires_grad}
    if not known:
        frozen = isinstance(net, torch.jit.ScriptModule) and "; torch.jit.freeze leaves none"
        raise ValueError(
            f"net: has no trainable parameters, needs at least one requires_grad=True{frozen or ''}"
        )
    return known


def tied_names(net: nn.Module) -> list[list[str]]:
    """All names of each parameter that has several."""
    names: dict[Tensor, list[str]] = defaultdict(list)
    for name, parameter in net.named_parameters(remove_duplicate=False):
        names[parameter].append(name)
    return [each for each in names.values() if len(each) > 1]


def select_parameters(
    argument: str, given: Any, known: Mapping[str, Tensor], net: nn.Module
) -> list[str]:
    """The names of the parameters given (by name, pattern or tensor; None: all), in known order."""
    found = set(known)
    if given is not None:
        single = isinstance(given, (str, Tensor))
        parts = [given] if single else list(given) if isinstance(given, Iterable) else []
        if not parts:
            raise ValueError(
                f"{argument}: got {given!r}, needs names, patterns or parameters, at least one"
            )
        names = _names(net)
        found = {name for part in parts for name in _matches(argument, part, known, names)}
    for name in found:
        if known[name].is_complex():
            raise ValueError(
                f"{argument}: {name!r} is complex, and curvature is taken in real numbers; make it "
                "torch.view_as_complex of a real parameter (..., 2), hold it fixed by "
                "requires_grad_(False), or leave it out by parameters="
            )
    return [name for name in known if name in found]


def _matches(
    argument: str, part: Any, known: Mapping[str, Tensor], names: Mapping[str, list[str]]
) -> list[str]:
    if isinstance(part, Tensor):
        found = [name for name, parameter in known.items() if parameter is part]
        if found:
            return found
        raise ValueError(
            f"{argument}: a tensor of shape {tuple(part.shape)} is no trainable parameter of the "
            "net; pass the parameter itself, e.g. net.fc.weight, with requires_grad=True"
        )
    if not isinstance(part, str):
        raise ValueError(f"{argument}: got {type(part).__name__}, needs a name or a parameter")
    found = [
        name
        for name in known
        if part in names[name] or any(fnmatch.fnmatchcase(each, part) for each in names[name])
    ]
    if found:
        return found
    every = dict.fromkeys(each for name in known for each in names[name])
    if any(each.startswith(f"{part}.") for each in every):
        raise ValueError(
            f"{argument}: {part!r} is a module; its trainable parameters are '{part}.*'"
        )
    close = difflib.get_close_matches(part, every, cutoff=0.0)[0]
    raise ValueError(
        f"{argument}: no trainable parameter is called {part!r}; the nearest is {close!r}"
    )


def _names(net: nn.Module) -> dict[str, list[str]]:
    """All that each parameter is called, by its first name."""
    found: dict[Tensor, list[str]] = defaultdict(list)
    for prefix, module in net.named_modules(remove_duplicate=False):
        for own, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            # What a weight is computed from, by a parametrization, pruning or weight normalization,
            # goes by the name of the weight, too.
            name, made = f"{prefix}.{own}".lstrip("."), re.sub(r"_(orig|[gv])$", "", own)
            weight = re.sub(r"parametrizations\.([^.]+)\.original\d*$", r"\1", name)
            if isinstance(vars(module).get(made), Tensor):
                weight = f"{prefix}.{made}".lstrip(".")
            found[parameter] += dict.fromkeys([name, weight])
    return {names[0]: names for names in found.values()}
