"""Checks of arguments: each raises ValueError with what was given and what is needed."""

import cmath
import difflib
import reprlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


def check_choice(argument: str, given: str, choices: Sequence[str]) -> str:
    """Return a name that is one of the choices; the message names the nearest one."""
    if isinstance(given, str) and given in choices:
        return given
    close = difflib.get_close_matches(str(given).lower(), choices)
    hint = f"did you mean {close[0]!r}? " if close else ""
    names = ", ".join(repr(name) for name in choices)
    shown = repr(given) if isinstance(given, str) else reprlib.repr(given)  # no tensor in full
    raise ValueError(f"{argument}: unknown name {shown}; {hint}choose from {names}")


def check_int(argument: str, given: Any, minimum: int = 1) -> int:
    """Return an int of at least ``minimum``; of Python or NumPy, no bool and no float."""
    if isinstance(given, bool) or not isinstance(given, (int, np.integer)):
        raise ValueError(f"{argument}: got {given!r}, needs a whole number of at least {minimum}")
    if given < minimum:
        raise ValueError(f"{argument}: got {given}, needs at least {minimum}")
    return int(given)


def check_seed(argument: str, given: Any, minimum: int = 0) -> int:
    """Return a seed that torch's generators take."""
    if check_int(argument, given, minimum) >= 2**64:
        raise ValueError(f"{argument}: got {given}, needs a seed below 2**64")
    return int(given)


def check_callable(argument: str, given: Any, needed: str) -> Any:
    """Return a function, or anything else that is called like one."""
    if not callable(given):
        raise ValueError(f"{argument}: got {reprlib.repr(given)}, needs {needed}")
    return given


def check_names(argument: str, given: Any) -> list[str]:
    """Return names as a list; one name is a list of it."""
    names = [given] if isinstance(given, str) else given
    if not isinstance(names, Sequence) or not names or not all(isinstance(n, str) for n in names):
        raise ValueError(f"{argument}: got {reprlib.repr(given)}, needs a list of names")
    return list(names)


def check_positive(argument: str, given: Any) -> float:
    """Return a finite float above zero."""
    value = _as_float(given)
    if not (0.0 < value < float("inf")):
        raise ValueError(f"{argument}: got {given!r}, needs a finite number above 0")
    return value


def check_within(argument: str, given: Any, low: float, high: float, ends: str = "[]") -> float:
    """Return a number between two ends, which belong to it where their bracket is square."""
    value = _as_float(given)
    inside = low < value < high or (value == low and ends[0] == "[")
    if not (inside or (value == high and ends[1] == "]")):
        needed = f"{ends[0]}{low:g}, {high:g}{ends[1]}"
        raise ValueError(f"{argument}: got {given!r}, needs a number in {needed}")
    return value


def _as_float(given: Any) -> float:
    """A float; NaN for what is no number, such as the text of one."""
    try:
        return float("nan") if isinstance(given, (str, bytes)) else float(given)
    except (TypeError, ValueError):
        return float("nan")


def as_tensor(argument: str, given: Any) -> Tensor:
    """Return an array, nested list or tensor as a tensor of its dtype, sharing memory by rows."""
    tensor = given
    try:
        if not isinstance(given, Tensor):
            array = np.asarray(given)
            # torch shares writable arrays in native byte order. Columns, as of frames, are copied
            # into rows: products of the same numbers round otherwise in another layout.
            shared = array.flags.writeable and array.flags.c_contiguous
            native = array.dtype.newbyteorder("=")
            array = array if shared and array.dtype == native else array.astype(native, order="C")
            tensor = torch.as_tensor(array)
    except (TypeError, ValueError, RuntimeError) as error:
        kind = type(given).__name__
        raise ValueError(
            f"{argument}: got {kind}, needs a tensor or an array of numbers"
        ) from error
    if tensor.layout != torch.strided or tensor.is_nested:
        kind = "a nested tensor" if tensor.is_nested else f"layout {tensor.layout}"
        raise ValueError(f"{argument}: got {kind}, needs a dense tensor")
    if tensor.is_complex():  # a cast to float64 would drop the imaginary part
        raise ValueError(f"{argument}: got dtype {tensor.dtype}, needs real numbers")
    return tensor


def as_generator(generator: torch.Generator | int) -> torch.Generator:
    """Return a generator as it is, a seed as a new generator on the CPU."""
    if isinstance(generator, torch.Generator):
        return generator
    if isinstance(generator, bool) or not isinstance(generator, (int, np.integer)):
        raise ValueError(f"generator: got {generator!r}, needs a torch.Generator or a seed")
    return torch.Generator().manual_seed(check_seed("generator", generator, -(2**63)))


def check_finite(argument: str, given: Tensor) -> Tensor:
    """Return a tensor without NaN and infinity; the message has the first position."""
    # One reduction decides the usual case; the mask is built only for the message.
    if cmath.isfinite(given.sum().item()):
        return given
    bad = (~torch.isfinite(given)).nonzero()
    if len(bad) == 0:  # the sum overflowed, the entries did not
        return given
    where = tuple(bad[0].tolist())
    raise ValueError(
        f"{argument}: entry {where} is {given[where].item()} "
        f"({len(bad)} of {given.numel()} entries are not finite); needs finite numbers"
    )
