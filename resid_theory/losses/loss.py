"""Losses by name, as functions, or as modules: one object that answers what callers ask of it."""

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resid_theory._check import check_choice
from resid_theory.losses.formulas import IGNORED, class_axis, formula_of, valid_labels
from resid_theory.losses.likelihood import Categorical, Gaussian, Likelihood, likelihood_of

LossLike = str | Callable[[Any, Any], Tensor]
"""A name, a function, a loss of ``torch.nn`` or a ``Loss``: all that ``Loss.of`` takes."""


class Loss:
    r"""A loss, with what is known about it.

    The loss of a data set is :math:`\sum_b w_b \ell_b / \sum_b w_b` over its batches, with
    :math:`w_b` what the function divides by on batch b, or :math:`\sum_b \ell_b` of a sum.

    Args:
        function: ``(output, target) -> scalar``, of what a net gives for m samples and their
            targets (m, ...), tensors or nests of them; or with ``of="batch"``
            ``(net, batch) -> scalar``.
        of: ``"output"``, or ``"batch"`` for a loss that runs the net itself. It takes batches as
            the data give them, none is split, and each counts by ``weights``.
        name: The name in messages; by default that of the function.
        targets: Kind of target: ``"labels"``, class indices or probabilities; ``"values"``,
            floating-point numbers of the output's shape; ``"shape"``, any numbers of that shape; or
            ``"any"``, the function's own affair.
        weights: Function from targets (m, ...) to the weights (m,) of the samples, whose sum is
            what the loss divides by; of a batch, where the loss takes one, to a number. By default
            they are measured, and a batch counts by the length of its first tensor.
        sums: Whether the loss is a sum over samples: that of a data set is the sum over batches.
        identity: Whether the Hessian of a sample's loss at its output is the identity.
        null_direction: Whether adding a number to all outputs of a sample leaves the loss as it is.
        likelihood: Distribution of targets whose negative log-likelihood the loss is, as Fisher
            matrices need it: ``rt.losses.Categorical``, ``Bernoulli`` or ``Gaussian``, or what
            ``functools.partial`` makes of them.

    Attributes:
        function: As given.
        name: As given.
        targets: As given.
        weights: As given.
        sums: As given; of a loss without a formula it is found out later.
        identity: As given.
        null_direction: As given.
        likelihood: As given; None where the distribution is not known.
        is_known: Whether weights need not be measured.
        whole: Reason for which several batches are refused; empty for most.

    Raises:
        ValueError: If the function cannot be called, or a name is unknown.

    Source:
        How weights are measured is derived in ``resid_theory.losses.weighting``.

    Example:
        >>> rt.Loss.of("square").identity
        True
        >>> def penalty(net, batch):
        ...     return net(batch).square().sum(1).mean()
        >>> rt.Loss(penalty, of="batch")
        Loss(penalty, of='batch')
    """

    def __init__(
        self,
        function: Callable[[Any, Any], Tensor],
        *,
        of: str = "output",
        name: str | None = None,
        targets: str = "any",
        weights: Callable[[Any], Any] | None = None,
        sums: bool = False,
        identity: bool = False,
        null_direction: bool = False,
        likelihood: Likelihood | None = None,
    ) -> None:
        if not callable(function):
            raise ValueError(
                f"function: got {function!r}, needs a callable (output, target), or (net, batch) "
                'with of="batch"'
            )
        self.function = function
        self.name = name or getattr(function, "__name__", None) or type(function).__name__
        self._of = check_choice("of", of, ("output", "batch"))
        self.targets = check_choice("targets", targets, ("labels", "values", "shape", "any"))
        self.weights, self.sums = weights, sums
        self.identity, self.null_direction = identity, null_direction
        self.likelihood = likelihood
        self.is_known = weights is not None or sums
        self._reads_tensor, self.whole = targets != "any", ""

    @staticmethod
    def of(given: Any) -> "Loss":
        """The loss that any form of it stands for.

        Args:
            given: A key of ``LOSSES``, a callable ``(output, target) -> scalar``, a loss of
                ``torch.nn``, or a loss.

        Returns:
            The loss; one that is given comes back as it is.

        Raises:
            ValueError: If a name is unknown, or what is given is no loss, or the class of one.
        """
        if isinstance(given, Loss):
            return given
        if isinstance(given, type):
            raise ValueError(f"loss: got the class {given.__name__}, needs {given.__name__}()")
        if callable(given):
            formula = formula_of(given)
            made = Loss(given, **formula, likelihood=likelihood_of(given))
            made._reads_tensor = bool(formula)
            return made
        if not isinstance(given, str):
            kind = type(given).__name__
            raise ValueError(f"loss: got {kind}, needs a name, a function or a loss of torch.nn")
        return LOSSES[check_choice("loss", given, list(LOSSES))]

    @property
    def takes_batches(self) -> bool:
        """True for a loss of (net, batch)."""
        return self._of == "batch"

    def __call__(self, output: Any, target: Any) -> Tensor:
        """The loss of outputs and targets; of a net and a batch where it is of these."""
        return self.function(output, target)

    def __repr__(self) -> str:
        """Its name."""
        return f"Loss({self.name}, of={self._of!r})" if self.takes_batches else f"Loss({self.name})"

    def reads(self, output: Any) -> Any:
        """The part of a net's output that the loss reads.

        Args:
            output: What the net gave.

        Returns:
            For a loss of one tensor, by name or of torch, the ``logits`` of an output of named
            tensors; the output as it is for a user's function, and where there are no logits.
        """
        if not self._reads_tensor or not isinstance(output, Mapping):
            return output
        logits = output.get("logits")
        return logits if isinstance(logits, Tensor) else output

    def weighed(self, net: nn.Module, batch: Any) -> "Loss":
        """The same loss, with the weights that it has for a net; as it is for most.

        Args:
            net: The net.
            batch: A batch of the data.

        Returns:
            A loss.
        """
        return self

    def label_weights(self, target: Any) -> Tensor | None:
        """Weights of single labels in the loss.

        Args:
            target: Targets, (m, ...).

        Returns:
            (m, labels of a sample); None where they are not known, or targets are no labels.
        """
        if self.weights is None or not isinstance(target, Tensor) or target.is_floating_point():
            return None
        if target.dim() > 1 and not self._reads_tensor:  # a user's function takes whole samples
            return None
        single = target.reshape(-1, *[1] * (target.dim() - 1))
        return Tensor.view(self.weights(single), len(target), -1)

    def check_target(self, output: Any, target: Any) -> None:
        """Raise ValueError for targets that do not fit, before broadcasting hides it.

        Args:
            output: Outputs, (m, ...).
            target: Their targets.

        Raises:
            ValueError: If the targets have another shape or type than the loss takes, or a label
                is out of range.
        """
        if self.targets == "any":
            return
        if not isinstance(target, Tensor):
            raise ValueError(f"data y: got {type(target).__name__}, needs a tensor")
        if self.targets == "labels" and (output.dim() < 2 or not target.is_floating_point()):
            self._check_labels(output, target)
        elif output.shape != target.shape:
            also = " or class indices (m,) of an integer dtype" if self.targets == "labels" else ""
            if self.targets != "labels" and not target.is_floating_point():
                also = "; of class labels, rows by rt.data.one_hot or loss='cross_entropy'"
            raise ValueError(
                f"data y: got shape {tuple(target.shape)} for outputs of shape "
                f"{tuple(output.shape)}; the loss {self.name!r} needs equal shapes{also}"
            )
        elif self.targets == "values" and not target.is_floating_point():
            raise ValueError(
                f"data y: got dtype {target.dtype}, the {self.name} loss needs floating point"
            )

    def _check_labels(self, output: Tensor, target: Tensor, ignored: bool = True) -> None:
        axis = class_axis(output, target)
        if axis is None or target.dim() == output.dim():
            shape = tuple(output.shape)
            one = f"(m,) for {shape}" if output.dim() == 2 else f"those of {shape} without one axis"
            raise ValueError(f"data y: got labels of shape {tuple(target.shape)}, needs {one}")
        classes, index = output.shape[axis], target.long()  # bool has no minimum
        valid = index[index != IGNORED] if ignored else index
        if bool(((valid < 0) | (valid >= classes)).any()):
            raise ValueError(
                f"data y: got class labels from {valid.min()} to {valid.max()} for {classes} "
                f"outputs, needs labels in 0..{classes - 1}"
                + (f", or {IGNORED} for samples that do not count" if ignored else "")
            )

    def targets_of(self, output: Any, target: Any) -> tuple[Any, Tensor | None]:
        """Targets as the loss takes them, and class labels if they are any, checked.

        Args:
            output: The net's output on some samples, (m, ...).
            target: Targets of any number of samples; class labels, one for each place of the
                output that has one number for each class, become one-hot rows for a loss of values.

        Returns:
            The targets, and the labels; None for targets that are no classes.

        Raises:
            ValueError: If they do not fit.
        """
        if not isinstance(output, Tensor):
            if self.targets != "any":
                kind = type(output).__name__
                raise ValueError(f"net: gives {kind}, the loss {self.name!r} needs a tensor")
            return target, None
        if not isinstance(target, Tensor) or output.dim() == 0:
            self.check_target(output, target)
            return target, None
        wide = output[:1].expand(len(target), *output.shape[1:])
        axis = class_axis(wide, target)
        if axis is None or target.is_floating_point() or target.dim() == output.dim():
            self.check_target(wide, target)
            return target, None
        labels = target.long()
        if self.targets not in ("values", "shape"):
            self.check_target(wide, labels)
            return labels, labels
        self._check_labels(wide, labels, ignored=False)
        rows = F.one_hot(labels, output.shape[axis]).movedim(-1, axis)
        return rows.to(output.dtype), labels

    def to(self, device: torch.device, dtype: torch.dtype) -> "Loss":
        """The same loss, with the tensors of a module, such as class weights, elsewhere.

        Args:
            device: Their device.
            dtype: Their dtype.

        Returns:
            A new loss; this one if its function is no module.
        """
        if not isinstance(self.function, nn.Module):
            return self
        again = copy.copy(self)
        again.function = copy.deepcopy(self.function).to(device, dtype)
        return again

    def derivatives(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        r"""Gradient and Hessian of every sample's loss with respect to its own output.

        Args:
            output: Network outputs, (m, k).
            target: Targets in the form that the loss needs.

        Returns:
            :math:`g_\mu = m \nabla_\mu L`, (m, k), and :math:`H_\mu = m \nabla_\mu^2 L`, (m, k, k),
            with L the loss of all: in a mean, those of the sample's own loss.

        Raises:
            ValueError: If the targets do not fit, or the loss has no gradient.
        """
        self.check_target(output, target)
        m, k = output.shape
        if self.identity:
            eye = torch.eye(k, dtype=output.dtype, device=output.device)
            return output - target, eye.expand(m, k, k)
        with torch.inference_mode(False), torch.enable_grad():
            point = output.detach().clone().requires_grad_()
            value = check_scalar(m * self(point, target))
            (grad,) = torch.autograd.grad(value, point, create_graph=True)
            hessians = output.new_zeros(m, k, k)
            for j in range(k if grad.requires_grad else 0):  # a linear loss has a constant gradient
                (hessians[:, j],) = torch.autograd.grad(
                    grad[:, j].sum(), point,
                    retain_graph=True, materialize_grads=True,
                )  # fmt: skip
        return grad.detach(), hessians


def square(output: Tensor, target: Tensor) -> Tensor:
    """Half the squared error of outputs (m, ...), summed over outputs, mean over samples."""
    # F.mse_loss is 2/k times it for k outputs. Not flatten(1): an output (m,) has no such axis.
    return 0.5 * (output - target).square().sum() / len(output)


def cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of logits and labels or probabilities, mean over all of them, in nats."""
    # Logits (m, k) take labels (m,), (m, T, k) take (m, T), (m, k, H, W) take (m, H, W).
    # The label -100 counts for nothing.
    axis = class_axis(output, target)
    if axis not in (None, 1):
        output = output.movedim(axis, 1)
        target = target.movedim(axis, 1) if target.is_floating_point() else target
    # torch takes int64 and uint8 labels only; NumPy often gives int32.
    return F.cross_entropy(output, target if target.is_floating_point() else target.long())


def check_scalar(value: Tensor, *, gradient: bool = True) -> Tensor:
    """Check that the value of a loss is a scalar with a gradient.

    Args:
        value: What the loss returned.
        gradient: Whether it needs a gradient.

    Returns:
        The value.

    Raises:
        ValueError: If it is no scalar tensor, or carries no gradient.
    """
    if not isinstance(value, Tensor) or value.dim() != 0:
        kind = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(type(value))
        raise ValueError(
            f"loss: returned {kind}, needs a scalar tensor, a mean or a sum (of a loss of torch, "
            "not reduction='none')"
        )
    if gradient and not value.requires_grad:
        raise ValueError(
            "loss: its value carries no gradient, needs one computed from the outputs by "
            "differentiable operations (without detach or item)"
        )
    return value


LOSSES: dict[str, Loss] = {
    "square": Loss(
        square,
        targets="values",
        identity=True,
        weights=lambda target: torch.ones(len(target)),
        likelihood=partial(Gaussian, total=True),
    ),
    "cross_entropy": Loss(
        cross_entropy,
        targets="labels",
        null_direction=True,
        weights=valid_labels,
        likelihood=partial(Categorical, axis=None),
    ),
}
