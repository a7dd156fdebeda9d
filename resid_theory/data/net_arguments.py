"""Inputs that a net takes: which entries of a batch they are, and how it is called with them."""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.utils.data import TensorDataset

from resid_theory._check import as_tensor, check_finite
from resid_theory.data.forms import batch_size, check_no_images, is_array, is_labelled, is_nest
from resid_theory.data.image_set import Images
from resid_theory.nested import tensors_of
from resid_theory.runtime.resources import is_out_of_memory


def arguments_of(net: nn.Module, x: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of a net: ``net(*x)``, ``net(**x)`` or, where only that fits, ``net(x)``."""
    if isinstance(x, Mapping) and (takes(net, **x) or not takes(net, x)):
        return (), dict(x)
    if isinstance(x, (tuple, list)) and (takes(net, *x) or not takes(net, x)):
        return tuple(x), {}
    return (x,), {}


def call_net(net: nn.Module, x: Any) -> Any:
    """The output of a net for inputs, which are its arguments by :func:`arguments_of`."""
    args, kwargs = arguments_of(net, x)
    return net(*args, **kwargs)


@contextmanager
def naming_inputs(x: Any, argument: str = "the net") -> Iterator[None]:
    """Make errors of a net a ValueError with its own words and the inputs that it does not take."""
    try:
        yield
    except (
        RuntimeError, LookupError, TypeError, ValueError, AttributeError, AssertionError
    ) as error:  # fmt: skip
        if is_out_of_memory(error):
            raise
        names = f"a mapping with {', '.join(map(repr, x))}, " if isinstance(x, Mapping) else ""
        shapes = ", ".join(f"{tuple(t.shape[1:])} and dtype {t.dtype}" for t in tensors_of(x))
        pixels = "; rt.Images(pixels=x, labels=y) scales bytes" if "uint8" in shapes else ""
        raise ValueError(
            f"data x: {argument} does not take {names}samples of shape {shapes}: {error}{pixels}"
        ) from error


def whole_inputs(data: Any) -> Any:
    """A whole set that begins with its inputs, for :func:`inputs_of`; None for batches."""
    if isinstance(data, (Images, Mapping)) or is_array(data):
        return data
    if isinstance(data, TensorDataset):
        return data.tensors
    if isinstance(data, (tuple, list)):
        if isinstance(data, list) and data and not any(is_nest(d) or is_array(d) for d in data):
            return as_tensor("data x", data)  # samples in lists of numbers
        # Two tensors in a list are a pair, two nests are two batches, as are three tensors.
        pair = len(data) == 2 or len(data) == 3 and isinstance(data, tuple)
        return tuple(data) if pair and not all(map(is_nest, data[:2])) else None
    is_object = hasattr(data, "x") or not hasattr(data, "__iter__") and is_nest(data)
    return data if is_object else None


def inputs_of(item: Any, net: nn.Module | None) -> tuple[Any, Any, str | None]:
    """Inputs of a batch, what stands behind them, and a sentence about what is left out."""
    note, x, y = None, item, None
    if isinstance(item, Mapping):
        if "x" in item and item.keys() <= {"x", "y"}:
            x, y = item["x"], item.get("y")
    elif isinstance(item, (tuple, list)) and item:
        # Of (a, b, y) the net takes as many as it needs; usually one, and of ((a, b), y) the first.
        count = 1
        if net is not None and not is_nest(item[0]):
            count = next((n for n in range(1, len(item) + 1) if takes(net, *item[:n])), 1)
        x, y = (item[0] if count == 1 else tuple(item[:count])), (*item, None)[count]
    elif not is_array(item) and hasattr(item, "x"):
        x, y = item.x, getattr(item, "y", None)
    check_no_images(x)
    if is_labelled(x) and net is not None:
        rest = {name: part for name, part in x.items() if name != "labels"}
        kept, note = taken_by(net, rest, x["labels"])
        x = kept if takes(net, **kept) else x
    elif isinstance(x, Mapping) and net is not None:
        x, note = taken_by(net, x)
    x = _as_tensors(x)
    size = batch_size(x)
    if size is None:
        raise ValueError(
            f"data: got a batch that is {type(item).__name__} without a tensor whose first axis "
            "counts samples; needs inputs, (inputs, targets), or a mapping or an object of tensors"
        )
    if size == 0:
        raise ValueError("data: got a batch without samples, needs at least one")
    if is_array(y) and batch_size(behind := as_tensor("data y", y)) != size:
        raise ValueError(
            f"data: x has {size} samples and y shape {tuple(behind.shape)}; needs the same number "
            "of samples along the first axis"
        )
    for tensor in tensors_of(x):
        check_finite("data x", tensor)
    return x, y, note


def taken_by(
    net: nn.Module, x: Mapping[str, Any], labels: Any = None
) -> tuple[Mapping[str, Any], str | None]:
    """Those of some inputs that a net takes by name, and a sentence about what is left out."""
    decodes = getattr(getattr(net, "config", None), "is_encoder_decoder", False)
    if labels is not None and decodes and not any(name.startswith("decoder_input") for name in x):
        x = {**x, "labels": labels}
    if takes(net, **x):
        return x, None
    known = [name for name in x if name in inspect.signature(net.forward).parameters]
    if not known or not takes(net, **{name: x[name] for name in known}):
        return x, None
    unknown = ", ".join(repr(name) for name in x if name not in known)
    note = f"of x, {unknown} is left out, which the net does not take"
    return {name: x[name] for name in known}, note


def _as_tensors(x: Any) -> Any:
    """Arrays as tensors, also in a tuple or a mapping; other objects as they are."""
    if isinstance(x, tuple) and any(map(is_array, x)):
        return tuple(as_tensor("data x", part) if is_array(part) else part for part in x)
    if type(x) is dict:
        return {key: as_tensor("data x", v) if is_array(v) else v for key, v in x.items()}
    return x if is_nest(x) else as_tensor("data x", x)


def takes(net: nn.Module, *args: Any, **kwargs: Any) -> bool:
    """True if arguments fit the signature of a net, or it shows none."""
    try:
        inspect.signature(net.forward).bind(*args, **kwargs)
    except TypeError:
        return False
    except ValueError:  # it shows none
        pass
    return True
