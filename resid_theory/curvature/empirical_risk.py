"""The loss of a net over a data set: checks, and the graph of any chunk of samples."""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from resid_theory._check import check_choice, check_finite, check_within
from resid_theory.curvature.double_backward import CheapDoubleBackward
from resid_theory.curvature.first_look import (
    Findings,
    check_counts,
    check_target,
    first_look,
    loss_value,
)
from resid_theory.curvature.fisher_graphs import MATRICES
from resid_theory.curvature.forward_checks import (
    WatchCuts,
    check_cuts,
    check_reached,
    check_repeatable,
    check_written_gradients,
    gains_from_channels_last,
    leaves_of,
    own_functions,
)
from resid_theory.curvature.matvec_graphs import MatvecGraph, record_graph
from resid_theory.curvature.parameter_selection import (
    select_parameters,
    tied_names,
    trainable_by_name,
)
from resid_theory.data import Batch, Data
from resid_theory.data.batch import Place
from resid_theory.data.sample_look import EXAMPLES, coupling
from resid_theory.losses import Coupled, KnownWeighting, Loss, LossLike, reweighted
from resid_theory.nested import map_tensors
from resid_theory.runtime.net_entry import check_differentiable, check_net
from resid_theory.runtime.net_state import NetState, copied
from resid_theory.runtime.preserve import preserved
from resid_theory.runtime.resources import is_out_of_memory


class EmpiricalRisk:
    """Net, loss and data, and the curvature matrix with respect to some of the parameters.

    Attributes:
        net, matrix, batchnorm, weight_decay: As `curvature_operator` takes them.
        loss, data: What `curvature_operator` takes, as ``Loss`` and ``Data``.
        state: What the net was when it was given.
        names, parameters: The parameters with rows, in order.
        found: What a look at a few samples has shown.
        splits: Whether the loss of a batch is a mean or a sum over its parts.
        alone: Whether every graph is to have one sample only.
        notes: What should be known about the matrix.
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
        weight_decay: float = 0.0,
        seed: int = 0,
        draws: int = 1,
    ) -> None:
        net = check_differentiable(check_net(net, finite=False))
        self._graph = MATRICES[check_choice("matrix", matrix, tuple(MATRICES))]
        self.net, self.loss, self.matrix = net, Loss.of(loss), matrix
        self.state = NetState(net)
        self.batchnorm = check_choice("batchnorm", batchnorm, ("eval", "batch"))
        self.weight_decay = check_within("weight_decay", weight_decay, 0, math.inf, "[)")
        self.notes: list[str] = []
        self.seed, self.draws, self._looked = seed, draws, False
        self._format = torch.preserve_format
        self._reached, self.alone = set[str](), False
        self.found = Findings(weighting=KnownWeighting(self.loss))
        known = trainable_by_name(net)
        self.names = select_parameters("parameters", parameters, known, net)
        self.parameters = [known[name] for name in self.names]
        for name, *others in tied_names(net):
            if name in self.names:
                also = ", ".join(map(repr, others))
                self.note(f"{name!r} is also {also}: one parameter, whose rows come once")
        norms = [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        self._mixes = batchnorm == "batch" and bool(norms)
        self.splits = not (self.loss.takes_batches or self._mixes)
        if self.loss.takes_batches and self._graph.needs_output:
            raise ValueError(
                f"matrix: {matrix!r} needs the net's outputs, which a loss of (net, batch) hides; "
                "use 'hessian', or a loss of (output, target)"
            )
        if self._graph.needs_likelihood and self.loss.likelihood is None:
            raise ValueError(
                f"matrix: {matrix!r} takes targets from the model, and the loss {self.loss.name!r} "
                "is not known to be the negative log-likelihood of any; use 'square', "
                "'cross_entropy', MSELoss, CrossEntropyLoss, NLLLoss or BCEWithLogitsLoss without "
                "class weights and smoothing, rt.Loss(loss, likelihood=rt.losses.Categorical), or "
                "the matrix 'empirical_fisher'"
            )
        if self._mixes and self._graph.needs_samples:
            raise ValueError(
                f"matrix: {matrix!r} needs a gradient for every sample, and with batchnorm='batch' "
                "samples share statistics; use batchnorm='eval'"
            )
        self.data = Data.of(data, like=net, pairs=not self.loss.takes_batches)
        self.data.ordered = not self.splits or self._graph.is_random

    @property
    def title(self) -> str:
        """The matrix's name in reports."""
        return self._graph.title

    @property
    def device(self) -> torch.device:
        """The net's device."""
        return self.parameters[0].device

    @property
    def point(self) -> Tensor:
        """The parameters in one vector, float64."""
        return torch.cat([p.detach().reshape(-1).double() for p in self.parameters])

    @property
    def is_low(self) -> bool:
        """True if a parameter is in a lower precision than float64."""
        return any(p.dtype != torch.float64 for p in self.net.parameters())

    @property
    def reads_parameters(self) -> bool:
        """True if the loss depends on the net's parameters beside the output."""
        return any(leaf is p for leaf in self.found.read_beside for p in self.net.parameters())

    @property
    def is_semidefinite(self) -> bool:
        """True if it is known that no eigenvalue is negative, whatever the net."""
        convex = self.loss.likelihood is not None  # all of them are, in the outputs
        squares = self._graph.needs_samples or self.matrix == "gauss_newton" and convex
        return squares and not self.found.read_beside

    @property
    def compares(self) -> bool:
        """True if weights of batches can be compared with those in other processes."""
        found = self.found.weighting
        return found.counts and not (found.sums and self.found.read_beside)

    def measuring(self, *, weights: bool = True) -> AbstractContextManager[None]:
        """Measure inside; the net is put back as it was given, weights if they may have changed."""
        return preserved(self.net, batchnorm=self.batchnorm, state=self.state, weights=weights)

    def note(self, text: str) -> None:
        """Keep a remark on the matrix, once; none if it is empty."""
        if text and text not in self.notes:
            self.notes.append(text)

    @property
    def sums(self) -> bool:
        """True if the loss of the data is the sum over batches, not a weighted mean."""
        return self.found.weighting.sums

    def first_pass(self) -> Iterator[Batch]:
        """Read the data once; a look at its first samples comes before the first batch."""
        self._checks = True
        for name, weight in self.net.named_parameters():
            check_finite(f"net {name}", weight)
        stream = iter(self.data)
        first = next(stream)
        begun = [first]
        if not self._looked and not self.loss.takes_batches:
            if first.size == 1:  # two samples tell more than one
                begun += [batch for batch in [next(stream, None)] if batch]
            self.look(begun)
        if self.loss.takes_batches:
            self.loss = self.of_batch(self.net, first.placed, self.loss.weighed)
            self.found.whole = self.loss.whole
            watch = WatchCuts()

            def again() -> Any:
                with watch:
                    return self.of_batch(self.net, first.placed)

            value = check_repeatable("loss", self.net, again, self.note)
            if watch.seen or own_functions(value):
                self._check_cuts(first)
        if whole := self.found.whole:
            begun += [batch for batch in [next(stream, None)] if batch]
            if len(begun) > 1:
                raise ValueError(
                    f"{whole}, so the losses of batches do not make that of all samples; pass all "
                    'in one batch (x, y), or rt.Loss(loss, of="batch"), which takes batches as '
                    "they are"
                )
        yield from check_counts(self.loss, chain(begun, stream))
        self._checks = False

    def look(self, batches: Sequence[Batch]) -> None:
        """Run the net on a few samples of one batch, or of two whose first has one."""
        self._looked, watch, first = True, WatchCuts(), batches[0]

        def run(batch: Batch) -> Any:
            with watch:
                output = self.run(batch)
            self.check_read_only()
            return output

        self.found = first_look(
            self.net, self.loss, batches, run=run, note=self.note, mixes=self._mixes, watch=watch
        )
        if self._graph.needs_samples and self.found.weighting.reads_shared:
            self.found.whole = "loss: reads an output that all samples share"
        if self.found.whole:
            self.keep_whole(self.found.whole)
        if watch.seen:
            self._check_cuts(first.spread(EXAMPLES) if self.splits else first)
        if gains_from_channels_last(self.net, first.ends().inputs):
            self._format = torch.channels_last
        if self._graph.needs_samples and self.reads_parameters:
            raise ValueError(
                f"matrix: {self.matrix!r} needs gradients of single samples, and the loss reads "
                "parameters beside the output; leave weight decay out, and pass weight_decay="
            )

    def _check_cuts(self, few: Batch) -> None:
        """Tell of what is cut from the graph, and refuse gradients that are."""
        wide, part = self, few
        with suppress(Exception):  # a net that cannot be copied, or has steps of one dtype only
            wide = self.in_float64(few) if self.is_low else self
            part = replace(few, content=few.placed, place=Place.of(wide.net))
        with CheapDoubleBackward():  # cuDNN has no derivative of recurrent layers in eval mode
            self.note(remark := check_cuts(wide.parameters, lambda: wide.value(part)))
            if self.matrix == "hessian" and not remark and not wide.is_low:
                check_written_gradients(wide.parameters, lambda: wide.value(part))

    def take_graphs(self, kind: type[MatvecGraph], *, alone: bool = False) -> None:
        """Go on with graphs of another kind, perhaps of single samples."""
        self._graph, self.alone = kind, alone

    def check_read_only(self) -> None:
        """Refuse a net that has written its parameters while it ran."""
        if name := self.state.overwritten():
            raise ValueError(
                f"net: measuring it writes its parameter {name!r} (Embedding(max_norm=...) does), "
                "and the loss has no derivatives at weights that move; write them before, in a "
                "call of the net in eval mode, and leave that out of forward (max_norm=None)"
            )

    def check_reached(self, batch: Batch) -> None:
        """Refuse parameters that no gradient reaches, of all graphs so far, if the loss does."""
        named = zip(self.names, self.parameters, strict=True)
        unreached = {name: p for name, p in named if name not in self._reached}
        if not unreached:
            return
        few = batch.spread(EXAMPLES) if self.splits else batch
        self.note(check_reached(self.net, self.state, unreached, lambda: self.value(few)))

    def keep_whole(self, reason: str) -> None:
        """Split no batch; refuse where that does not help."""
        if self._graph.needs_samples:
            raise ValueError(
                f"matrix: {self.matrix!r} needs a net and a loss that treat every sample alone; "
                f"{reason}"
            )
        self.splits, self.data.ordered, self.found.whole = False, True, reason
        self.found.weighting = KnownWeighting(Loss(self.loss.function))

    def run(self, batch: Batch) -> Any:
        """The net's output; a ValueError if it does not take the batch."""
        try:
            return self.loss.reads(batch.try_call(self.net, self._format))
        except ValueError as error:
            if self._mixes and batch.size == 1:
                raise ValueError(
                    "data: a batch has one sample, of which batchnorm='batch' takes no statistics; "
                    "use drop_last=True, another batch size, or batchnorm='eval'"
                ) from error
            raise

    @torch.inference_mode(False)  # of whose tensors nothing can be differentiated
    def in_float64(self, batch: Batch) -> "EmpiricalRisk":
        """The same weights in float64, in a copy of the net that is tried on a few samples."""
        wide = copy.copy(self)
        wide.net, wide._format = copied(self.net).double(), torch.preserve_format
        if isinstance(self.loss.function, nn.Module):
            wide.loss = copy.copy(self.loss)
            wide.loss.function = copied(self.loss.function).double()
        known = trainable_by_name(wide.net)
        wide.parameters = [known[name] for name in self.names]
        few = batch.ends() if self.splits else batch
        few = replace(few, content=few.placed, place=Place.of(wide.net))
        own = set(map(id, self.net.parameters()))
        if any(id(leaf) in own for leaf in leaves_of(wide.value(few))):
            raise ValueError("loss: reads the net itself, which a copy of the net does not move")
        return wide

    def widened(self) -> "EmpiricalRisk":
        """The same of a copy in float64, from the start; itself where the net is in float64."""
        if not self.is_low:
            return self
        self.data = self.data.held()
        wide = self.in_float64(next(iter(self.data)))
        return EmpiricalRisk(
            wide.net, wide.loss, self.data, matrix=self.matrix, parameters=wide.parameters,
            batchnorm=self.batchnorm, weight_decay=self.weight_decay, seed=self.seed,
            draws=self.draws,
        )  # fmt: skip

    def value(self, batch: Batch) -> Tensor:
        """The loss of a batch by itself."""
        if self.loss.takes_batches:
            return self.of_batch(self.net, batch.placed)
        return loss_value(self.loss, self.run(batch), batch.target)

    def graph(
        self, batch: Batch, start: int, count: int, *, weigh: bool = False, ends: bool = False
    ) -> MatvecGraph:
        """The graph of some samples of a batch, whose ends may be checked to need no others."""
        part = batch.part(start, count)

        def build() -> MatvecGraph:
            if self.loss.takes_batches:
                output, target, loss, shares = self.net, part.placed, Loss(self.of_batch), None
                own = part.size if self.loss.weights is None else self.loss.weights(target)
                weight = 1.0 if self.sums else float(own)
            else:
                output, target = self.run(part), part.target
                if self._checks:
                    check_target(self.loss, output, part)
                    if ends and self.splits and part.size > 2:
                        self.check_alone(part, output)
                loss, weight, shares = self.weigh(part, output)
            graph = self._graph(
                output, target, loss, self.parameters, seed=self.seed, draws=self.draws,
                first=part.first, axes=self.found.axes, shares=shares,
            )  # fmt: skip
            graph.weight = weight
            return graph

        graph = record_graph(build, weigh=part.size if weigh else 0)
        if self._checks:
            reached = zip(self.names, graph.reached, strict=False)  # of the loss itself nothing
            self._reached.update(name for name, gradient in reached if gradient)
        return graph

    @torch.no_grad()
    def check_alone(self, part: Batch, output: Any = None) -> None:
        """Refuse samples that others do not leave alone: experts of limited capacity."""
        output = self.run(part) if output is None else output
        shared = self.found.weighting.reads_shared
        if reason := coupling(self.found.axes, self.run(part.ends()), output, shared=shared):
            raise Coupled(reason)

    def of_batch(self, net: nn.Module, batch: Any, read: Callable[..., Any] | None = None) -> Any:
        """The loss of (net, batch), or what is read of them; its errors name it."""
        try:
            return (read or self.loss)(net, batch)
        except (RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
            if is_out_of_memory(error) or (read and isinstance(error, ValueError)):
                raise
            raise ValueError(
                f"loss: of (net, batch), fails on a batch that is {type(batch).__name__}: {error!r}"
            ) from error

    def weigh(self, part: Batch, output: Any) -> tuple[Loss, float, Tensor | None]:
        """The loss of some samples, its weight in that of all, and each sample's share of it."""
        fixed, target = map_tensors(output, torch.Tensor.detach), part.target
        if not self._graph.needs_samples and part.sample_weight is None:
            weight = self.found.weighting.of_part(fixed, target, part.size)
            repeated = self.found.weighting.repeated() if part.first else None
            if repeated is None:
                return self.loss, weight, None
            # The first part has it already.
            return Loss(lambda o, t: self.loss(o, t) - repeated), weight, None
        each = self.found.weighting.of_samples(fixed, target, part.size)
        loss = self.loss
        if part.sample_weight is not None:
            if self.found.whole or self._mixes or self.found.axes is None:
                reason = self.found.whole or "with batchnorm='batch' samples share statistics"
                raise ValueError(
                    f"sample_weight: needs a net and a loss that treat every sample alone; {reason}"
                )
            if self.found.weighting.repeated() is not None:
                raise ValueError(
                    "sample_weight: the loss is a sum with a part that it has once, such as weight "
                    "decay; leave that out, and pass weight_decay="
                )
            each = each * part.sample_weight.cpu()
            loss = reweighted(loss, self.found.axes, each, sums=self.sums)
        total = float(each.sum())
        return (loss, 1.0, each) if self.sums else (loss, total, each / total if total else each)
