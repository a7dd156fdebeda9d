"""Weights from elsewhere: files of tensors, opened without running anything, and put into a net."""

import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from resid_theory.runtime.net_entry import check_net
from resid_theory.runtime.net_state import copied

# Under these names a training keeps the weights of its net, beside other things.
_CONTAINERS = ("state_dict", "model_state_dict", "model", "net", "module", "weights", "params")
_NAMED = 5  # names of each fault that are listed


def read_safely(path: Path) -> Any:
    """Content of a file of ``torch.save``; a ValueError if it holds more than data."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:  # torch.load does not compare the checksums
                damaged = archive.testzip()
                if damaged is not None:
                    raise ValueError(f"its part {damaged!r} is damaged, copy the file again")
        return torch.load(path, map_location="cpu", weights_only=True)
    # The unpickler may stumble over a hostile file in any way.
    except Exception as error:
        text = str(error)
        code = re.search(r"GLOBAL (\S+)", text)
        text = text.rpartition("WeightsUnpickler error:")[2].strip() or type(error).__name__
        first = re.split(r"\n|\. ", text)[0][:200].rstrip(".")
        raise ValueError(
            f"asks for {code[1]}, which no file of plain tensors does; nothing in it was run"
            if code
            else f"is not, or not whole, a file of tensors by torch.save ({first})"
        ) from error


def read_weights(path: Path) -> dict[str, Tensor]:
    """The state dict in a file of ``torch.save`` or safetensors, also beside other things."""
    try:
        if path.suffix == ".safetensors":
            content = _of_safetensors(path)
        else:
            content = read_safely(path)
        while not _is_state_dict(content):
            content = _inside(content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return dict(content)


def _of_safetensors(path: Path) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(path.read_bytes())
    except SafetensorError as error:
        raise ValueError(f"holds no tensors in the safetensors format ({error})") from error


def _is_state_dict(content: Any) -> bool:
    """True for tensors by name, and what modules keep beside them (``_extra_state``)."""
    if not isinstance(content, Mapping) or not all(isinstance(name, str) for name in content):
        return False
    rest = [value for name, value in content.items() if not name.endswith("_extra_state")]
    return any(isinstance(v, Tensor) for v in rest) and not any(
        isinstance(v, Mapping) for v in rest
    )


def _inside(content: Any) -> Any:
    if not isinstance(content, Mapping):
        raise ValueError(f"holds a {type(content).__name__}, needs a state dict")
    found = [name for name, value in content.items() if isinstance(value, Mapping)]
    known = [name for name in _CONTAINERS if name in found]
    weights = known or [name for name in found if _is_state_dict(content[name])]
    if not known and len(weights) != 1:
        there = ", ".join(map(repr, list(content)[:_NAMED])) or "nothing"
        count = "several state dicts" if weights else "no state dict"
        raise ValueError(
            f"holds {count}, its entries are {there}; needs tensors by name, or one such mapping "
            f"under {' or '.join(map(repr, _CONTAINERS[:3]))}"
        )
    return content[weights[0]]


def without_wrappers(entries: Mapping[str, Any]) -> dict[str, Any]:
    """Entries under names without the parts that ``DataParallel`` and ``torch.compile`` add."""
    plain = {
        ".".join(part for part in name.split(".") if part not in ("module", "_orig_mod")): value
        for name, value in entries.items()
    }
    return plain if len(plain) == len(entries) else dict(entries)


def load_weights(net: nn.Module, tensors: Mapping[str, Any]) -> None:
    """Put a state dict into a net, which takes its dtype; all of it or nothing."""
    inner = check_net(net, finite=False)
    wanted = inner.state_dict()
    found = _renamed(wanted, tensors)
    shared = [names for names in _shared(wanted) if len(names) > 1]
    for names in shared:  # files of safetensors have one name of each tensor
        given = [found[name] for name in names if name in found]
        found = {**{name: value for value in given for name in names}, **found}
    for name in wanted.keys() - found.keys():
        if name.endswith("num_batches_tracked"):  # older files have none
            found[name] = wanted[name]
    if faults := misfits(wanted, found):
        complex_into_real = any(
            isinstance(value, Tensor) and value.is_complex() and not known.is_complex()
            for name, value in found.items()
            if isinstance(known := wanted.get(name), Tensor)
        )
        try:  # modules may take entries under names of an older form
            if complex_into_real:  # torch would drop the imaginary parts
                raise ValueError
            copied(inner).load_state_dict(found)
        except (RuntimeError, ValueError):
            raise ValueError(f"does not fit the net: {faults}") from None
    for names in shared:
        values = [(name, found[name].nan_to_num()) for name in names if name in found]
        for name, value in values:
            if not torch.equal(value, values[0][1].to(value.dtype)):
                raise ValueError(
                    f"does not fit the net: {values[0][0]!r} and {name!r} are one tensor there"
                )
    dtypes = {t.dtype for t in found.values() if isinstance(t, Tensor) and t.is_floating_point()}
    if len(dtypes) == 1 and not any(p.is_complex() for p in inner.parameters()):
        inner.to(dtype=dtypes.pop())  # the file's, also where the default dtype is another
    inner.load_state_dict(found)


def _shared(wanted: Mapping[str, Any]) -> Iterable[list[str]]:
    """Names in a state dict by their tensor."""
    names: dict[Any, list[str]] = {}
    for name, value in wanted.items():
        if isinstance(value, Tensor) and value.numel():
            place = value.data_ptr(), value.shape, value.stride(), value.dtype
            names.setdefault(place, []).append(name)
    return names.values()


def _renamed(wanted: Mapping[str, Any], tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Entries under the names of the net, as far as wrappers and a common beginning tell them."""
    own = without_wrappers({name: name for name in wanted})
    plain = without_wrappers(tensors)
    if plain.keys() - own.keys() == {"n_averaged"}:  # AveragedModel's count
        del plain["n_averaged"]
    starts = {name.partition(".")[0] + "." for name in plain}
    if len(starts) == 1 and own.keys().isdisjoint(plain):
        start = starts.pop()
        plain = {name.removeprefix(start): value for name, value in plain.items()}
    return {own.get(name, name): value for name, value in plain.items()}


def misfits(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """All that does not fit, in a sentence; empty if everything does."""
    shapes = [
        f"{name!r} {_shape(value)} for {_shape(wanted[name])}"
        for name, value in found.items()
        if name in wanted and _shape(value) != _shape(wanted[name])
    ]
    kinds = {
        "missing": [repr(name) for name in wanted if name not in found],
        "unexpected": [repr(name) for name in found if name not in wanted],
        "of another shape": shapes,
    }
    return "; ".join(f"{kind}: {_listed(names)}" for kind, names in kinds.items() if names)


def _shape(value: Any) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"{tuple(value.shape)}{' complex' * value.is_complex()}"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
