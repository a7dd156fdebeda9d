"""Losses as users write them: names, modules, functions of (output, target) or (net, batch).

``make`` of a row takes a case (`differential.Case`), of which it reads the net's kind.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, is_dataclass
from typing import Any

import torch
import torch.nn.functional as F
from random_nets import CLASSES, call, tensors
from torch import Tensor, nn

IGNORED = -100
CLASS_WEIGHTS = torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64)


@dataclass(frozen=True)
class LossRow:
    """A loss: from a case and a net to a name, or to a function of (output, target).

    ``targets``: labels, padded (some are ignored), values, weighted (a weight behind the values),
    probabilities. ``divides``: what the loss divides by, or sum, or nothing (no weighted mean).
    ``decays``: reads parameters beside the output. ``batch``: a function of (net, batch).
    """

    make: Callable[[Any, nn.Module], Any]
    targets: str
    divides: str = "samples"
    forms: tuple[str, ...] = ("vector", "tokens", "pixels", "time_first", "flat")
    plain: bool = False
    decays: bool = False
    batch: bool = False


def rows(output: Any, form: str) -> Tensor:
    """Outputs as (n, k), sample by sample; of an output with names, the logits."""
    if not isinstance(output, Tensor):
        output = output.logits if is_dataclass(output) else tensors(output)[0]
    if form in ("vector", "flat"):
        return output
    if form == "scalar":
        return output[:, None]
    if form == "pixels":
        return output.movedim(1, -1).flatten(0, -2)
    return (output.transpose(0, 1) if form == "time_first" else output).flatten(0, 1)


def named(function: Callable[[Tensor, Tensor], Tensor], case: Any) -> Any:
    """A function of rows and flat targets as one of the net's outputs and targets."""

    def loss(output: Any, target: Tensor) -> Tensor:
        # Targets of values have their class axis where the output has it.
        values = target.is_floating_point()
        flat = rows(target, TARGET_FORM.get(case.form, case.form)) if values else target.flatten()
        return function(rows(output, case.form), flat)

    return loss


TARGET_FORM = {"time_first": "tokens", "flat": "tokens"}


def classes(case: Any, *, weight: bool = False, **options: Any) -> Any:
    """Cross-entropy as the functional, on rows."""

    def loss(z: Tensor, t: Tensor) -> Tensor:
        return F.cross_entropy(z, t, CLASS_WEIGHTS.to(z) if weight else None, **options)

    return named(loss, case)


def decayed(case: Any, net: nn.Module) -> Any:
    function = case.choose([
        classes(case), classes(case, weight=True), classes(case, reduction="sum")
    ])  # fmt: skip
    return lambda output, target: function(output, target) + penalty(net)


def penalty(net: nn.Module) -> Tensor:
    return 0.05 * torch.cat([p.reshape(-1) for p in net.parameters()]).square().sum()


def weighted_errors(normalized: bool) -> Callable[[Any, nn.Module], Any]:
    def function(z: Tensor, t: Tensor) -> Tensor:
        values, weights = t[:, :-1], t[:, -1]
        total = weights @ (z - values).square().sum(1)
        return total / (weights.sum() if normalized else len(z))

    return lambda case, net: named(function, case)


def contrast(z: Tensor, t: Tensor) -> Tensor:
    """Samples of one class attract each other."""
    same = (t[:, None] == t[None]).to(z.dtype)
    return -((z @ z.T).log_softmax(1) * same).sum() / same.sum()


def spread(z: Tensor, t: Tensor) -> Tensor:
    """Errors about the mean error of the batch."""
    errors = z - F.one_hot(t, CLASSES)
    return (errors - errors.mean(0)).square().mean()


def elements(case: Any, net: nn.Module) -> Any:
    modules = [
        nn.MSELoss(), nn.HuberLoss(), nn.PoissonNLLLoss(),
        nn.BCEWithLogitsLoss(pos_weight=torch.tensor(3.0, dtype=torch.float64)),
    ]  # fmt: skip
    functions = [F.mse_loss, F.smooth_l1_loss, lambda z, t: (z - t).cosh().log().mean()]
    modules = [module.to(next(net.parameters()).dtype) for module in modules]
    function = case.choose([*modules, *functions])
    native = case.form not in TARGET_FORM and case.net_row.plain
    return function if native else named(function, case)


def module(**options: Any) -> Callable[[Any, nn.Module], Any]:
    return lambda case, net: nn.CrossEntropyLoss(**options).to(next(net.parameters()).dtype)


def of_batch(
    function: Callable[[Any], Any], decays: bool = False
) -> Callable[[Any, nn.Module], Any]:
    """A function of (net, batch), for batches that are pairs, dicts or objects."""

    def make(case: Any, _net: nn.Module) -> Any:
        inner = function(case)

        def loss(net: nn.Module, batch: Any) -> Tensor:
            if isinstance(batch, Pair):
                x, y = batch.x, batch.y
            else:
                x, y = batch.values() if isinstance(batch, Mapping) else batch
            value = inner(call(net, x), y)
            return value + penalty(net) if decays else value

        return loss

    return make


def square(output: Tensor, target: Tensor) -> Tensor:
    return 0.5 * (output - target).square().sum() / len(output)


@dataclass
class Pair:
    """A batch as an object."""

    x: Any
    y: Tensor


WORDY, NATIVE = ("tokens", "time_first", "flat"), ("vector", "pixels")
REAL = ("vector", "scalar", "tokens", "pixels", "time_first", "flat")

LOSSES: dict[str, LossRow] = {
    "'square'": LossRow(
        lambda *_: "square", "values", forms=("vector", "scalar", "tokens", "pixels"), plain=True
    ),
    "'cross_entropy'": LossRow(
        lambda *_: "cross_entropy", "labels", forms=("vector", "tokens", "pixels"), plain=True
    ),
    "'cross_entropy' of probabilities": LossRow(
        lambda *_: "cross_entropy", "probabilities", forms=("vector",), plain=True
    ),
    "CrossEntropyLoss(weight)": LossRow(
        module(weight=CLASS_WEIGHTS), "labels", "class weights", NATIVE, plain=True
    ),
    "CrossEntropyLoss(ignore_index)": LossRow(
        module(ignore_index=IGNORED), "padded", "valid labels", NATIVE, plain=True
    ),
    "CrossEntropyLoss(weight, label_smoothing)": LossRow(
        module(weight=CLASS_WEIGHTS, label_smoothing=0.1),
        "padded", "class weights", NATIVE, plain=True,
    ),
    "CrossEntropyLoss(sum)": LossRow(module(reduction="sum"), "labels", "sum", NATIVE, plain=True),
    "class weights": LossRow(
        lambda case, net: classes(case, weight=True), "labels", "class weights"
    ),
    "tokens with padding": LossRow(
        lambda case, net: classes(case), "padded", "valid labels", WORDY
    ),
    "sample weights, normalized": LossRow(
        weighted_errors(True), "weighted", "sample weights", forms=("vector",)
    ),
    "sample weights, mean": LossRow(weighted_errors(False), "weighted", forms=("vector",)),
    "sum": LossRow(
        lambda case, net: named(lambda z, t: (z - t).square().sum(), case), "values", "sum", REAL
    ),
    "mean over elements": LossRow(elements, "values", forms=REAL),
    "decay": LossRow(decayed, "labels", decays=True),
    "contrastive": LossRow(
        lambda case, net: named(case.choose([contrast, spread]), case), "labels", "nothing",
        ("vector",),
    ),
    "root of a mean": LossRow(
        lambda case, net: named(lambda z, t: F.mse_loss(z, t).sqrt(), case), "values", "nothing",
        REAL,
    ),
    "a mean and a sum": LossRow(
        lambda case, net: named(lambda z, t: F.mse_loss(z, t) + 0.1 * z.square().sum(), case),
        "values", "nothing", REAL,
    ),
    "(net, batch), mean": LossRow(of_batch(lambda case: classes(case)), "labels", batch=True),
    "(net, batch), decay": LossRow(
        of_batch(lambda case: classes(case), decays=True), "labels", batch=True, decays=True
    ),
    "(net, batch), contrastive": LossRow(
        of_batch(lambda case: named(contrast, case)), "labels", "nothing", ("vector",), batch=True
    ),
}  # fmt: skip
