"""The mean loss of a net over a data set: checks, and the graph of any chunk of samples."""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from resid_theory._check import check_choice
from resid_theory.curvature.input_checks import check_batches, check_inputs, check_net
from resid_theory.curvature.matvec_graphs import MATRICES, MatvecGraph, record_graph
from resid_theory.curvature.parameter_selection import select_parameters, trainable_by_name
from resid_theory.data import Batch, Data
from resid_theory.losses import Loss, LossLike

__all__ = ["EmpiricalRisk"]

_PIECE = 1024  # samples of images that are normalized and checked together


class EmpiricalRisk:
    """Net, loss and data, and the curvature matrix with respect to some of the parameters.

    Attributes:
        net, matrix, batchnorm: As `curvature_operator` takes them.
        loss, data: What `curvature_operator` takes, as ``Loss`` and ``Data``.
        names, parameters: The parameters with rows, in order.
        splits: Whether a batch's mean loss is the mean over its parts.
    """

    def __init__(
        self,
        net: nn.Module,
        loss: LossLike,
        data: Any,
        *,
        matrix: str = "hessian",
        parameters: Any = None,
        batchnorm: str = "eval",
        seed: int = 0,
    ) -> None:
        check_net(net)
        self._graph = MATRICES[check_choice("matrix", matrix, tuple(MATRICES))]
        self.net, self.loss, self.matrix = net, Loss.of(loss), matrix
        self.batchnorm = check_choice("batchnorm", batchnorm, ("eval", "batch"))
        self._seed, self._channels_last = seed, False
        known = trainable_by_name(net)
        self.names = select_parameters("parameters", parameters, known)
        self.parameters = [known[name] for name in self.names]
        norms = [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        mixes = batchnorm == "batch" and bool(norms)
        self.splits = not (self.loss.takes_batches or mixes)
        if self.loss.takes_batches and self._graph.needs_output:
            raise ValueError(
                f"matrix: {matrix!r} needs the net's outputs, which a loss of (net, batch) hides; "
                "use 'hessian', or a loss of (output, target)"
            )
        if mixes and self._graph.needs_samples:
            raise ValueError(
                f"matrix: {matrix!r} needs a gradient for every sample, and with batchnorm='batch' "
                "samples share statistics; use batchnorm='eval'"
            )
        self.data = Data.of(data, like=net, pairs=not self.loss.takes_batches)
        self.data.check_rewindable("every product")
        self.data.ordered = not self.splits

    @property
    def title(self) -> str:
        """The matrix's name in reports."""
        return self._graph.title

    @property
    def device(self) -> torch.device:
        """The net's device."""
        return self.parameters[0].device

    def check_data(self) -> tuple[int, Batch]:
        """Read the data once and check them; return the number of samples and the first batch."""
        first: Batch | None = None
        samples = 0

        def pieces() -> Iterator[Batch]:
            nonlocal first, samples
            for batch in self.data:
                first, samples = first or batch, samples + batch.size
                for start in range(0, batch.size if batch.is_pair else 0, _PIECE):
                    piece = batch.part(start, _PIECE)
                    check_inputs(self.net, [piece])
                    yield piece

        check_batches(self.net, self.loss, pieces())
        assert first is not None
        if first.is_pair:
            self._check_matrix(first.part(0, 2))
            self._channels_last = self._gains_from_channels_last(first.part(0, 2).pair[0])
        return samples, first

    def _check_matrix(self, batch: Batch) -> None:
        """Refuse nets that the matrix is not defined for."""
        if not self._graph.needs_output:
            return
        output = batch.call(self.net)
        if not isinstance(output, Tensor):
            raise ValueError(
                f"matrix: {self.matrix!r} needs a net that gives one tensor, got "
                f"{type(output).__name__}; use 'hessian'"
            )
        if not self._graph.needs_samples or batch.size < 2:
            return
        with torch.no_grad():
            both, alone = batch.call(self.net)[:1], batch.part(0, 1).call(self.net)
        gap, scale = float((both - alone).abs().max()), float(both.abs().max())
        if gap > torch.finfo(both.dtype).eps ** 0.5 * scale:
            raise ValueError(
                f"matrix: {self.matrix!r} needs a net that treats every sample alone; here the "
                f"output of the first sample moves by {gap:.2g} with the second one present"
            )

    @torch.no_grad()
    def _gains_from_channels_last(self, x: Tensor) -> bool:
        """True if convolutions run on the CPU in float32, and the net takes such inputs."""
        convolves = any(isinstance(m, nn.Conv2d) for m in self.net.modules())
        if not (convolves and x.dim() == 4 and x.device.type == "cpu" and x.dtype == torch.float32):
            return False
        try:
            self.net(x.contiguous(memory_format=torch.channels_last))
        except RuntimeError:  # a view that needs contiguous rows
            return False
        return True

    def in_float64(self) -> "EmpiricalRisk":
        """The same weights in float64, in a copy of the net."""
        wide = copy.copy(self)
        wide.net, wide._channels_last = copy.deepcopy(self.net).double(), False
        if isinstance(self.loss.function, nn.Module):
            wide.loss = copy.copy(self.loss)
            wide.loss.function = copy.deepcopy(self.loss.function).double()
        known = trainable_by_name(wide.net)
        wide.parameters = [known[name] for name in self.names]
        return wide

    def graph(self, batch: Batch, start: int, count: int, *, weigh: bool = False) -> MatvecGraph:
        """The graph of some samples of a batch, in the mode that the net is in."""
        part = batch.part(start, count)

        def build() -> MatvecGraph:
            if self.loss.takes_batches:
                output, target = self.net, part.placed
            else:
                x, target = part.pair
                if self._channels_last:
                    x = x.contiguous(memory_format=torch.channels_last)
                output = self.net(x.clone())  # a net that starts in place would overwrite the data
            return self._graph(output, target, self.loss, self.parameters, self._seed, part.first)

        return record_graph(build, weigh=weigh)
