"""Public docstrings are complete."""

import importlib
import inspect
import pkgutil
import re
from dataclasses import is_dataclass

import resid_theory


def public():
    """Functions and classes that the rooms name in ``__all__``, but for the command line."""
    names = ["resid_theory"]
    for _, name, is_room in pkgutil.walk_packages(resid_theory.__path__, "resid_theory."):
        if is_room and not name.endswith(".cli"):
            names.append(name)
    modules = [importlib.import_module(name) for name in names]
    found = {}
    for module in modules:
        for name in getattr(module, "__all__", ()):
            value = getattr(module, name)
            if inspect.isfunction(value) or inspect.isclass(value):
                found[f"{value.__module__}.{name}"] = value
    return found


def missing(value):
    """Parts that the docstring of a function or of a result with fields lacks."""
    if inspect.isclass(value) and not is_dataclass(value):
        return
    text, signature = inspect.getdoc(value) or "", inspect.signature(value)
    for name, parameter in signature.parameters.items():
        named = re.search(rf"^ +\**{name}\b.*:", text, re.MULTILINE)
        if not named and parameter.kind != parameter.VAR_KEYWORD:  # of a class: its fields
            yield name
    if not signature.parameters or inspect.isclass(value):
        return
    returns = str(signature.return_annotation)
    if returns not in ("None", "NoReturn") and not re.search(r"^(Returns|Yields):", text, re.M):
        yield "Returns"
    if re.search(r"\braise |\bcheck_", inspect.getsource(value)) and "Raises:" not in text:
        yield "Raises"


def test_public_docstrings_are_complete():
    checked = {name: list(missing(value)) for name, value in public().items()}
    assert len(checked) > 100
    assert not {name: parts for name, parts in checked.items() if parts}
