"""Saved nets: weights with the call that builds the net; nothing is unpickled."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from resid_theory import networks
from resid_theory._check import check_choice
from resid_theory.equivalence import fold, to_plain
from resid_theory.networks.shortcut import ShortcutNet
from resid_theory.runtime import store
from resid_theory.runtime.net_entry import check_net, set_eval
from resid_theory.runtime.weight_files import load_weights, misfits, read_weights

# The names that a file may call; other public names read, write or download.
_BUILDERS = {name: getattr(networks, name) for name in networks.__all__ if name.endswith("net")}
_BUILDERS |= {"ShortcutNet": ShortcutNet}
_CONVERSIONS = {"fold": fold, "to_plain": to_plain}  # these record themselves in their result
_RENAMED = {"draw": "init"}  # arguments under the names that older files have
_CHECKOUT = Path(__file__).resolve().parents[2] / "experiments" / "checkpoints"


def save_checkpoint(
    path: str | Path,
    net: nn.Module,
    *,
    architecture: Mapping[str, Any] | None = None,
    about: Mapping[str, Any] | None = None,
) -> Path:
    """Write a net so that :func:`load_checkpoint` gives it back.

    Args:
        path: The manifest, ``<name>.json``; the weights go beside it.
        net: Any module on any device; its state dict is written.
        architecture: ``{"builder": name, "arguments": {...}}``: the public function or class of
            ``resid_theory`` that builds the net, and its keyword arguments; see :func:`build_net`.
            None takes ``net.architecture``, which nets of the library's builders and their folds
            have; a net that such a call does not build is written without.
        about: Further facts such as recipe, seed and accuracy; anything that JSON can hold.

    Returns:
        The file of the weights.

    Raises:
        ValueError: If ``architecture`` is given and builds a net with other tensors, or ``about``
            has no JSON form.
        OSError: If it cannot be written; an earlier file is then intact.
    """
    net = check_net(net, finite=False)
    if architecture is not None:
        fault = misfits(net.state_dict(), build_net(architecture).state_dict())
        if fault:
            raise ValueError(f"architecture: {architecture} builds another net: {fault}")
    record = architecture_of(net) if architecture is None else dict(architecture)
    return write_net(path, net, record, about or {})


def write_net(
    path: str | Path,
    net: nn.Module,
    architecture: Mapping[str, Any] | None,
    about: Mapping[str, Any],
) -> Path:
    """Write a net with an architecture that builds it, which was checked."""
    content = {"kind": "net", "architecture": architecture, "about": dict(about)}
    return store.write_checkpoint(path, net.state_dict(), content)


def architecture_of(net: nn.Module) -> dict[str, Any] | None:
    """The record of the call that builds a net; None without one, or if the net was changed."""
    record = getattr(net, "architecture", None)
    if not isinstance(record, Mapping):
        return None
    built = build_net(record)
    # Names and shapes alone would not see a ReLU replaced by a tanh.
    same = str(built) == str(net) and not misfits(built.state_dict(), net.state_dict())
    return dict(record) if same else None


def build_net(architecture: Mapping[str, Any]) -> nn.Module:
    """Build a net from the record of its public builder and arguments.

    Args:
        architecture: ``{"builder": public name of a net, "arguments": keyword arguments}``;
            anything that JSON can hold, so a seed rather than a generator. An optional ``"then"``
            lists conversions of the net in eval mode, by name: ``"fold"``, ``"to_plain"``.

    Returns:
        A new module that carries the record as ``net.architecture``, which checkpoints keep.
        torch's random state is as before.

    Raises:
        ValueError: If the builder is no public name that builds a net, does not take the arguments,
            or a conversion is unknown.
    """
    name: Any = architecture.get("builder")
    given: Any = architecture.get("arguments", {})
    if not isinstance(name, str) or name not in _BUILDERS:
        raise ValueError(
            f"architecture: builder {name!r:.80} is no public name of resid_theory that builds a "
            f"net, needs one of {', '.join(_BUILDERS)}"
        )
    try:
        options: dict[str, Any] = dict(given)
        arguments = {_RENAMED.get(key, key): value for key, value in options.items()}
        with torch.random.fork_rng(devices=[]):
            net: nn.Module = _BUILDERS[name](**arguments)
    except TypeError as error:
        raise ValueError(f"architecture: {name} does not take arguments {given!r:.80}") from error
    for step in architecture.get("then", ()):
        net = _CONVERSIONS[check_choice("architecture", step, list(_CONVERSIONS))](net.eval())
    net.architecture = {**architecture, "arguments": arguments}  # type: ignore[assignment]
    return net


def load_checkpoint(name: str | Path, *, net: nn.Module | None = None) -> nn.Module:
    """Load a trained net by path or by name.

    Args:
        name: A manifest, with or without ``.json``, or a folder of a finished training; otherwise a
            name that is looked up in ``$RESID_THEORY_CHECKPOINTS``, then in
            ``experiments/checkpoints`` of the checkout. With ``net`` also a state dict from
            elsewhere, by ``torch.save`` or in the safetensors format, alone or in a mapping under
            ``"state_dict"`` or ``"model"``; wrappers (``module.``, ``_orig_mod.``) and a common
            beginning of all names are taken off. Nothing in a file is ever run.
        net: A module of the same architecture that takes the weights, for nets that no public
            builder makes; None builds the net from the record in the manifest.

    Returns:
        The net, in eval mode, on the CPU unless ``net`` was given.

    Raises:
        FileNotFoundError: If it is in none of these places; names them.
        ValueError: If a file is damaged or holds more than data, there is no architecture and
            ``net`` is None, or the weights do not fit: names all that are missing, unexpected, or
            of another shape. The net is then as it was.
    """
    path = find_checkpoint(name)
    if path.suffix == ".json":
        tensors, content = store.read_checkpoint(path)
    else:
        tensors, content = read_weights(path), {"kind": "net", "architecture": None}
    if content.get("kind") != "net":
        raise ValueError(f"{path}: is not the checkpoint of a net but a {content.get('kind')}")
    if net is None:
        if content["architecture"] is None:
            raise ValueError(f"{path}: has no architecture record; pass the module as net=")
        net = build_net(content["architecture"])
    try:
        load_weights(net, tensors)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    set_eval(net)
    return net


def find_checkpoint(name: str | Path) -> Path:
    """The manifest that :func:`load_checkpoint` reads."""
    given = os.environ.get("RESID_THEORY_CHECKPOINTS")
    folders = [Path(given).expanduser()] if given else []
    bases = [store.path_of(name, "name"), *(folder / name for folder in (*folders, _CHECKOUT))]
    for base in bases:
        for path in (base, base.with_name(f"{base.name}.json"), base / "net.json"):
            if path.is_file():
                return path
    if Path(name).suffix in (".json", ".safetensors", ".pt", ".pth"):
        raise FileNotFoundError(f"name: no checkpoint {str(name)!r}: there is no such file")
    first = given or "$RESID_THEORY_CHECKPOINTS (not set)"
    names = ", ".join(list_checkpoints())
    shipped = f"there are {names}" if names else (
        "trained nets ship with the checkout: install it with pip install -e, or set "
        "RESID_THEORY_CHECKPOINTS to its experiments/checkpoints"
    )  # fmt: skip
    raise FileNotFoundError(
        f"name: no checkpoint {str(name)!r}: it is no path here, and there is no {name}.json in "
        f"{first} nor in {_CHECKOUT}; {shipped}"
    )


def list_checkpoints() -> dict[str, dict[str, Any]]:
    """Trained nets that ship with the checkout.

    Returns:
        By the name that :func:`load_checkpoint` takes: architecture, and ``about`` with loss (nats)
        and error (share) on training and test images, and data and recipe in ``settings``. Empty
        if the library was installed without its checkout.
    """
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(_CHECKOUT.glob("*.json")) + sorted(_CHECKOUT.glob("paper_scale/*.json")):
        content = store.read_checkpoint(path)[1]
        found[str(path.relative_to(_CHECKOUT).with_suffix(""))] = {
            "architecture": content["architecture"], "about": content.get("about", {})
        }  # fmt: skip
    return found
