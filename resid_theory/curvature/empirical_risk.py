"""A mean loss of some of a net's parameters: what the graph of every batch is made from."""

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from resid_theory.curvature.input_checks import check_batches, check_inputs, check_net
from resid_theory.curvature.matvec_graphs import (
    FisherGraph,
    GaussNewtonGraph,
    HessianGraph,
    MatvecGraph,
    recorded,
)
from resid_theory.curvature.parameter_selection import chosen, named
from resid_theory.data.reiterable import Passes
from resid_theory.losses import Loss, check_scalar, loss_function

__all__ = ["MATRICES", "Problem", "is_closure"]

MATRICES = ("hessian", "gauss_newton", "fisher")
_PIECE = 1024  # samples of images that are made and looked at together


def is_closure(loss: Any) -> bool:
    """Whether a loss takes (net, batch): its second parameter is called ``batch``.

    Args:
        loss: A name or a callable.

    Returns:
        False for a callable of (output, target), and for one without a signature.
    """
    try:
        return callable(loss) and list(inspect.signature(loss).parameters)[1:2] == ["batch"]
    except (TypeError, ValueError):
        return False


class Problem:
    """Net, loss, matrix and parameters.

    Args:
        net: The module.
        loss: As ``curvature_operator`` takes it.
        matrix: One of ``MATRICES``.
        parameters: Which rows there are, as ``curvature_operator`` takes them.
        batchnorm: ``"eval"`` or ``"batch"``.

    Attributes:
        names: Of the parameters with rows, in order.
        parameters: The tensors.
        closure: Whether the loss takes (net, batch).
        mixes: Whether samples of a batch share BatchNorm's statistics.

    Raises:
        ValueError: If the loss or a parameter is unknown, or the matrix is not defined for them.
    """

    def __init__(
        self, net: nn.Module, loss: str | Loss, matrix: str, parameters: Any, batchnorm: str
    ) -> None:
        check_net(net)
        known = named(net)
        self.net, self.matrix, self.batchnorm = net, matrix, batchnorm
        self.closure = is_closure(loss)
        self._given, self._function = loss, loss_function(loss)
        self.names = chosen("parameters", parameters, known)
        self.parameters = [known[name] for name in self.names]
        norms = [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        self.mixes = batchnorm == "batch" and bool(norms)
        self._channels_last = False
        if self.closure and matrix != "hessian":
            raise ValueError(
                f"matrix: {matrix!r} needs the net's outputs, which a loss of (net, batch) hides; "
                "use 'hessian', or a loss of (output, target)"
            )
        if self.mixes and matrix == "fisher":
            raise ValueError(
                "matrix: 'fisher' needs a gradient for every sample, and with batchnorm='batch' "
                "samples share statistics; use batchnorm='eval'"
            )

    @property
    def splits(self) -> bool:
        """Whether a batch's mean loss is the mean over its parts."""
        return not (self.closure or self.mixes)

    def look(self, passes: Passes) -> int:
        """Read the data once and refuse what does not fit.

        Args:
            passes: The data.

        Returns:
            Number of samples.

        Raises:
            ValueError: If the data do not fit net or loss.
        """
        sizes: list[int] = []

        def parts() -> Iterator[tuple[Tensor, Tensor]]:
            for batch in passes:
                sizes.append(batch.size)
                for start in range(0, batch.size, _PIECE):
                    pair = batch.part(start, _PIECE, self.parameters[0])
                    check_inputs(self.net, [pair])
                    yield pair

        if self.closure:
            sizes = [batch.size for batch in passes]
            return sum(sizes)
        examples: list[tuple[Tensor, Tensor]] = []
        check_batches(self.net, self._given, _noting(parts(), examples))
        x, y = examples[0]
        if self.matrix != "hessian":
            self._check_output(self.net(x.clone()))
        if self.matrix == "fisher":
            self._check_alone(x)
        self._channels_last = self._gains_from_channels_last(x)
        return sum(sizes)

    def _check_output(self, output: Any) -> None:
        if not isinstance(output, Tensor):
            raise ValueError(
                f"matrix: {self.matrix!r} needs a net that gives one tensor, got "
                f"{type(output).__name__}; use 'hessian'"
            )

    @torch.no_grad()
    def _check_alone(self, x: Tensor) -> None:
        if len(x) < 2:
            return
        both, alone = self.net(x.clone())[:1], self.net(x[:1].clone())
        gap, scale = float((both - alone).abs().max()), float(both.abs().max())
        if gap > torch.finfo(both.dtype).eps ** 0.5 * scale:
            raise ValueError(
                "matrix: 'fisher' needs a net that treats every sample alone; here the output of "
                f"the first sample moves by {gap:.2g} with the second one present"
            )

    @torch.no_grad()
    def _gains_from_channels_last(self, x: Tensor) -> bool:
        """Whether convolutions run on the CPU in float32, and the net takes such inputs."""
        convolves = any(isinstance(m, nn.Conv2d) for m in self.net.modules())
        if not (convolves and x.dim() == 4 and x.device.type == "cpu" and x.dtype == torch.float32):
            return False
        try:
            self.net(x.contiguous(memory_format=torch.channels_last))
        except RuntimeError:  # a view that needs rows one after the other
            return False
        return True

    def graph(self, part: Any, *, weigh: bool = False) -> MatvecGraph:
        """The graph of some samples, in the mode that the net is in.

        Args:
            part: As ``Batch.part`` gives it.
            weigh: Whether to count its bytes.

        Returns:
            The graph.
        """
        return recorded(self._build(part), weigh=weigh)

    def _build(self, part: Any) -> Callable[[], MatvecGraph]:
        if self.closure:
            function: Any = self._function
            return lambda: HessianGraph(check_scalar(function(self.net, part)), self.parameters)
        x, y = part
        if self._channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        x = x.clone()  # a net that starts in place would overwrite the data
        if self.matrix == "hessian":
            return lambda: HessianGraph(self._function(self.net(x), y), self.parameters)
        kind = GaussNewtonGraph if self.matrix == "gauss_newton" else FisherGraph
        return lambda: kind(self.net(x), y, self._function, self.parameters)


def _noting(
    parts: Iterator[tuple[Tensor, Tensor]], examples: list[tuple[Tensor, Tensor]]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Pass batches on, keeping two samples of the first."""
    for x, y in parts:
        if not examples:
            examples.append((x[:2], y[:2]))
        yield x, y
