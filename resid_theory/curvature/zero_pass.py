"""One batch's graph at zero branches: what branches read, the gradients at what they write."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from resid_theory.curvature.empirical_risk import EmpiricalRisk
from resid_theory.curvature.loss_graph import LossGraph, WeightUse
from resid_theory.curvature.matvec_graphs import LossItself
from resid_theory.data import Batch
from resid_theory.nested import map_tensors, tensors_of


def loss_graph(risk: EmpiricalRisk, batch: Batch) -> tuple[Tensor, float, LossGraph]:
    """The loss of a batch with its graph, the weight of the batch, and what is in the graph."""
    if batch.is_pair:
        x, y = batch.pair
        inputs = map_tensors(
            x, lambda t: t.clone().requires_grad_() if t.is_floating_point() else t
        )
        # The net may overwrite its input, which a leaf with a gradient does not allow.
        given = map_tensors(inputs, lambda t: t.clone() if t.requires_grad else t)
        batch = replace(batch, content=(given, y))
    else:
        inputs = batch.placed
    recorded = risk.graph(batch, 0, batch.size)
    assert isinstance(recorded, LossItself)
    return recorded.loss, recorded.weight, LossGraph(recorded.loss, risk.net, tensors_of(inputs))


class ZeroPass:
    """Graph of a batch, and the products of weights in branches, which are found if not named."""

    def __init__(self, risk: EmpiricalRisk, batch: Batch, names: Sequence[str] | None) -> None:
        self.loss, self.weight, self.graph = loss_graph(risk, batch)
        self.names = list(self.graph.branch_names() if names is None else names)
        self.uses = [use for use in self.graph.uses if use.name in self.names]

    def sort(self) -> None:
        """Tell uses that read the stream from those that write it, and take gradients there."""
        self.branches = self.graph.without(self.names)
        outputs = [use.output for use in self.uses]
        found = torch.autograd.grad(self.loss, outputs, retain_graph=True) if outputs else ()
        self.readers: list[int] = []
        self.writers: dict[int, Tensor] = {}  # with gradients, (parts, T, N)
        for number, (use, g) in enumerate(zip(self.uses, found, strict=True)):
            x = use.input
            if not bool(x.isfinite().all()) or not bool(g.isfinite().all()):
                raise ValueError(
                    f"net: at zero weights the input of {use.name!r} or the gradient behind it is "
                    "not finite; a norm behind a branch needs eps above zero"
                )
            reads, writes = bool(x.any()), bool(g.any())
            if reads and writes:
                raise ValueError(self._first_order(use))
            if reads or use.bias and not writes:
                if use.bias and use.bias_entries is None:
                    raise ValueError(
                        f"net: {use.bias!r} is added to the product of {use.name!r}, but is not "
                        "one number for each hidden unit; needs a bias that is"
                    )
                self.readers.append(number)
            elif writes:
                self.writers[number] = use.rows(g)

        for reader in self.readers:
            for writer in self.writers:
                one, other = self.uses[reader], self.uses[writer]
                if one.meets(other):
                    raise ValueError(
                        f"net: {one.name!r} reads the stream and writes it, too; needs weights "
                        "that do one of both"
                    )

    def _first_order(self, use: WeightUse) -> str:
        inside = set(self.branches.inside(use.node))
        others = (w for w in self.graph.uses if w.node in inside and w.name not in self.names)
        if (other := next(others, None)) is not None:
            return (
                f"net: {other.name!r} in the branch of {use.name!r} is not zero, because the "
                "stream has it, too, or branches= leaves it out; needs all weights of a branch"
            )
        if any(other.node in inside for other in self.uses if other is not use):
            return (
                f"net: the input of {use.name!r} is not zero at zero weights, because an "
                "activation in front of it is not; needs φ(0) = 0"
            )
        return (
            f"net: {use.name!r} alone is a branch, and a single layer has a gradient at zero; "
            "rt.theory.zero_point predicts nets of such branches"
        )

    def connect(self, readers: Sequence[int], writers: Sequence[int]) -> None:
        """Prepare :meth:`push` from some uses to others."""
        self._moving = [w for w in writers if self.uses[w].input.requires_grad]
        self._probes = [torch.zeros_like(self.uses[w].input).requires_grad_() for w in self._moving]
        self._back: list[tuple[int, Tensor]] = []
        if self._moving and readers:
            # J^T c is linear in c: differentiated by c it gives J v, without forward mode.
            back = torch.autograd.grad(
                [self.uses[w].input for w in self._moving],
                [self.uses[r].output for r in readers],
                self._probes, create_graph=True, allow_unused=True,
            )  # fmt: skip
            self._back = [(r, t) for r, t in zip(readers, back, strict=True)
                          if t is not None and t.requires_grad]  # fmt: skip

    def push(self, moves: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """Changes of what writers multiply, of changes (parts, T, N) behind readers."""
        if not self._back:
            return {}
        found = torch.autograd.grad(
            [t for _, t in self._back], self._probes,
            [self.uses[r].placed(moves[r]) for r, _ in self._back],
            retain_graph=True, materialize_grads=True,
        )  # fmt: skip
        return dict(zip(self._moving, found, strict=True))
