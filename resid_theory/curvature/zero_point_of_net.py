"""The zero point of a net's branches, from first derivatives of the net with branches at zero."""

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from resid_theory.curvature.empirical_risk import EmpiricalRisk
from resid_theory.curvature.hidden_units import (
    ROUND_OFF,
    SIDES,
    HiddenUnits,
    PredictedLoss,
    UnitGroup,
    compare_product,
    pushed,
)
from resid_theory.curvature.matvec_graphs import LossItself
from resid_theory.curvature.operator import CurvatureOperator, operator_of
from resid_theory.curvature.parameter_selection import select_parameters
from resid_theory.curvature.zero_pass import ZeroPass
from resid_theory.data import Batch
from resid_theory.eigen.products import probe_vectors
from resid_theory.losses import LossLike
from resid_theory.theory.zero_weights.transformer_point import (
    Branch,
    TransformerPoint,
    transformer_zero_point,
)

# Most that hidden units receive on either side of a kink. Scores of queries and keys move by its
# square, which must stay below round-off, or zero singular values of B are counted, also where a
# norm of queries (eps 1e-6) makes it 1e3 times larger.
_STEP = 1e-12
_KINK = 1e-3  # change of slopes across zero, as changes of the order of one show it
_SAME = 1e-9  # relative difference of numbers that are equal but for round-off
_WHOLE = 5000  # entries of biases whose Hessian is taken as a whole
_NORMED = 20.0  # gain of a branch's last step that only a norm at zero has


def zero_point_of_net(
    net: nn.Module, loss: LossLike, data: Any, *, branches: Any = None
) -> TransformerPoint:
    r"""Predict the Hessian of a net whose branches have zero weights, by branch and kind of weight.

    Weights and biases of the branches are set to zero in a copy; all else stays: norms, embeddings,
    read-outs, biases of scores. One forward and one backward pass give what branches read and the
    gradients at what they write; changes that run from the one to the other in a few more passes
    show the means over attended tokens, the slopes of activations, and which weights are paired. No
    class or name of a layer is asked for. A product of the whole Hessian with a random vector has
    to be the predicted one.

    Args:
        net: Any module, measured in eval mode, in float64, and left as it was.
        loss: As `curvature_operator` takes it.
        data: As `curvature_operator` takes them.
        branches: Names, patterns or parameters: the weights of the branches. None takes every
            weight in a product that data can go around, past fewer products.

    Returns:
        The prediction. Its rows are those of the branches' parameters; those of all others do not
        mix with them, unless branches add biases to the stream.

    Raises:
        ValueError: If there is no branch, a branch is not zero to first order in its weights (an
            activation with φ(0) ≠ 0, a single layer), a weight is computed from its parameter or
            both reads and writes the stream, the Hessian has more than pairs and shifts, or net,
            loss and data do not fit one another.

    Source:
        Derived here; see `theory.transformer_zero_point`.

    Example:
        >>> layer = torch.nn.TransformerEncoderLayer(
        ...     4, 2, 8, dropout=0.0, batch_first=True, norm_first=True, bias=False
        ... )
        >>> net = torch.nn.Sequential(layer, torch.nn.Linear(4, 3))
        >>> x, y = torch.randn(5, 6, 4), torch.randn(5, 6, 3)
        >>> point = rt.curvature.zero_point_of_net(net, "square", (x, y))
        >>> point.verdict, point.index < 0.5
        ('strict saddle', True)
    """
    given = EmpiricalRisk(net, loss, data)
    given.data = given.data.held()
    with given.measuring():
        wide = given.in_float64(next(iter(given.data)))
    own = dict(wide.net.named_parameters())
    for parameter in own.values():
        parameter.requires_grad_(parameter.is_floating_point())
    names = None
    if branches is not None:
        names = select_parameters("branches", branches, own, wide.net)
    with _graphs_of(EmpiricalRisk(wide.net, wide.loss, given.data)) as risk:
        names, biases = _checked(ZeroPass(risk, next(risk.first_pass()), names))
    with torch.no_grad():
        for name in (*names, *biases):
            own[name].zero_()
    with _graphs_of(EmpiricalRisk(wide.net, wide.loss, given.data)) as risk:
        return _Measurement(risk, names, list(risk.first_pass())).point()


@contextmanager
def _graphs_of(risk: EmpiricalRisk) -> Iterator[EmpiricalRisk]:
    risk.take_graphs(LossItself)
    with risk.measuring():
        yield risk


def _checked(found: ZeroPass) -> tuple[list[str], list[str]]:
    """Names of the branches' weights and of their biases; a ValueError if they make no branches."""
    if not found.names:
        raise ValueError(
            "net: has no branch; data meet every weight on their only way to the loss, or on one "
            "past as few products as any other. Name the weights of the branches by branches="
        )
    uses = {use.name: use for use in found.uses}
    for name in found.names:
        if name in found.graph.convolved:
            raise ValueError(f"net: {name!r} of a branch is in a convolution; needs matrices there")
        if name not in uses:
            raise ValueError(
                f"branches: {name!r} is in no product of a weight with data (matmul, linear, "
                "einsum); needs the weights of the branches, whose biases go with them"
            )
    if not found.graph.without(found.names).stream:
        raise ValueError(
            f"branches: no way leads from the data to the loss without {found.names[0]!r} and the "
            "others; zero weights would cut the net"
        )
    for use in found.uses:
        if use.part is None:
            raise ValueError(
                f"net: the weight in the product of {use.name!r} is computed from its parameter "
                "(parametrized); remove the parametrization, or fold it"
            )
    inside = dict.fromkeys(use.bias for use in found.uses if use.bias)
    for use in found.graph.uses:
        for name in (use.name, use.bias):
            if use.name not in uses and (name in uses or name in inside):
                raise ValueError(f"net: {name!r} is a weight of a branch and of the stream, too")
    return found.names, list(inside)


def _reads_alike(one: ZeroPass, other: ZeroPass) -> bool:
    """True if readers multiply the same numbers in two graphs."""
    pairs = [(one.uses[n].input, other.uses[n].input) for n in other.readers
             if n < len(one.uses) and bool(other.uses[n].input.any())]  # fmt: skip
    return len(one.uses) == len(other.uses) and all(torch.equal(a, b) for a, b in pairs)


def _shift_hessian(A: CurvatureOperator) -> tuple[Tensor, int]:
    """M, (d, d), and the number of biases that each move all as the others do; or the whole, 1."""
    sizes = [p.numel() for p in A.risk.parameters]
    size, count = sum(sizes), len(sizes)
    probe = probe_vectors(1, size)
    width, *others = set(sizes)
    if not others:
        rows = torch.eye(width, size)
        found = (A @ torch.cat([rows, probe]).mT).mT.cpu()
        rows, tried = found[:-1], found[-1].view(count, -1)
        M = rows[:, :width]
        off = (
            (rows - M.repeat(1, count)).abs().max(),
            (tried - M @ probe.view(count, -1).sum(0)).abs().max(),
        )
        if off[0] <= _SAME * M.abs().max() and off[1] <= _SAME * tried.abs().max():
            return M, count
    if size > _WHOLE:
        raise ValueError(
            f"net: branches add {size} biases to a stream on which they act in different ways; "
            f"their Hessian is taken as a whole, up to {_WHOLE}"
        )
    return A.dense().cpu(), 1


class _Measurement:
    """The zero point of a net whose branches are at zero."""

    def __init__(self, risk: EmpiricalRisk, names: Sequence[str], batches: Sequence[Batch]) -> None:
        self._risk, self._names, self._batches, self._first = risk, names, batches, batches[0]
        self._own = dict(risk.net.named_parameters())
        self._notes: list[str] = []

    def _at_zero(self, batch: Batch) -> ZeroPass:
        made = ZeroPass(self._risk, batch, self._names)
        made.sort()
        made.connect(made.readers, list(made.writers))
        return made

    def _both_sides(self, batch: Batch) -> list[ZeroPass]:
        """Graphs on either side of zero, along random weights of those that read."""
        zero, sides, steps = self._at_zero(batch), [], {}
        reading: dict[str, float] = {}  # with the size of what they multiply, at least one
        for use in (zero.uses[number] for number in zero.readers):
            size = float(use.input.detach().abs().max())
            name = use.name if size else use.bias
            reading[name] = max(reading.get(name, 1.0), size)
        draws = torch.Generator().manual_seed(0)
        for name in sorted(reading):
            drawn = torch.randn(self._own[name].shape, generator=draws, dtype=torch.float64)
            steps[name] = _STEP / reading[name] / drawn.norm() * drawn
        try:
            for sign in (1, -1):
                for name, step in steps.items():
                    self._own[name].data.copy_(sign * step)
                side = ZeroPass(self._risk, batch, self._names)
                if not _reads_alike(side, zero):
                    raise ValueError(
                        "net: the weights of branches decide which weights a token meets (routed "
                        "experts); name all weights of the branches but the router's by branches="
                    )
                side.readers, side.writers = zero.readers, zero.writers
                side.connect(side.readers, list(side.writers))
                sides.append(side)
        finally:
            for name in reading:
                self._own[name].data.zero_()
        return sides

    def _has_kink(self, zero: ZeroPass) -> bool:
        """True if slopes on both sides of zero are not, on average, those at zero."""
        draws, moves = torch.Generator().manual_seed(1), {}
        for number in zero.readers:
            use = zero.uses[number]
            drawn = torch.randn(*use.rows_shape, generator=draws, dtype=torch.float64)
            moves[number] = drawn.to(use.input)
        at, around = zero.push(moves), pushed(self._both_sides(self._first), moves)
        return any(float((v - at.get(n, 0.0)).abs().max()) > _KINK for n, v in around.items())

    def point(self) -> TransformerPoint:
        """The prediction from what is measured."""
        zero = self._at_zero(self._first)
        exact = not self._has_kink(zero)
        if not exact:
            self._notes.append(
                "an activation has a kink at zero, where no Hessian exists: its slope is the mean "
                "of both sides"
            )
        take = (lambda batch: [self._at_zero(batch)]) if exact else self._both_sides
        units = HiddenUnits(lambda: map(take, self._batches), exact=exact)
        self._note_norms(zero)
        shifts = self._shifted(zero)
        total = 1.0 if self._risk.sums else units.total
        branches = self._named(zero, units, total, shifts)
        moving: dict[str, Any] = {}
        if shifts:
            risk = EmpiricalRisk(
                self._risk.net, self._risk.loss, self._risk.data,
                parameters=[self._own[name] for name in shifts],
            )  # fmt: skip
            A = operator_of(risk)
            shift, count = _shift_hessian(A)
            moving = {"shift": shift, "biases": count, "gradient": float(A.gradient.norm())}
        beside = zero.branches
        inside = {name for number in beside.ends for name in beside.parameters(number)}
        predicted = PredictedLoss(
            {use.key: use for use in zero.uses}, units, total, shifts, moving.get("shift")
        )
        compare_product(
            lambda: map(take, self._batches),
            {name: p for name, p in self._own.items() if name in inside},
            predicted,
            bound=ROUND_OFF if exact else SIDES,
        )
        biases = {use.bias for use in zero.uses}
        return replace(
            transformer_zero_point(branches, **moving),
            parameters=tuple(name for name in self._own if name in inside),
            zeroed=tuple(n for n in self._own if n in self._names or n in biases),
            notes=(*self._risk.data.notes, *self._notes),
        )

    def _note_norms(self, zero: ZeroPass) -> None:
        """Tell of branches that end in a norm, whose slope at zero is that of its eps."""
        ends = [(number, GradientEdge(node, 0))
                for number, nodes in zero.branches.ends.items() for node in nodes]  # fmt: skip
        found = torch.autograd.grad(zero.loss, [edge for _, edge in ends], retain_graph=True)
        joined: dict[int, float] = defaultdict(float)
        for (number, _), g in zip(ends, found, strict=True):
            joined[number] += float(g.norm())
        gains = [
            float(g.norm()) / joined[zero.branches.numbers[zero.uses[n].node]]
            for n, g in zero.writers.items()
        ]
        if gains and max(gains) > _NORMED:
            self._notes.append(
                f"a norm behind a branch multiplies what {sum(gain > _NORMED for gain in gains)} "
                f"weights write by up to {max(gains):.3g} at zero: the Hessian holds only while "
                f"they write far less than {1 / max(gains):.1g}"
            )

    def _shifted(self, zero: ZeroPass) -> list[str]:
        """Parameters that move the stream at zero weights, or multiply what does."""
        biases = dict.fromkeys(zero.uses[n].bias for n in zero.writers if zero.uses[n].bias)
        behind: dict[str, None] = {}
        ends = [zero.uses[n].node for n in zero.writers]
        for number in zero.branches.ends:
            behind |= dict.fromkeys(zero.branches.parameters(number, behind=ends))
        zeroed = {use.name for use in zero.uses}
        others = [name for name in behind if name not in zeroed]
        if not biases:  # a norm behind a branch may add some
            own = [self._own[name] for name in others]
            found = torch.autograd.grad(zero.loss, own, materialize_grads=True) if own else ()
            if not any(bool(g.any()) for g in found):
                return []
        moved = {*biases, *others}
        return [name for name in self._own if name in moved]

    def _named(
        self, zero: ZeroPass, units: HiddenUnits, total: float, shifts: Sequence[str]
    ) -> list[Branch]:
        """Branches by name, each pair of weights with what the loss couples them by."""
        numbers = {use.key: zero.branches.numbers[use.node] for use in reversed(zero.uses)}
        uses = {use.key: use for use in zero.uses}
        pairs: dict[int, dict[Any, list[UnitGroup]]] = defaultdict(lambda: defaultdict(list))
        for group in units.groups:
            writers = dict.fromkeys(key for key, _ in group.slots)
            pairs[numbers[group.reader]][group.reader, *writers].append(group)
        paired: dict[str, int] = defaultdict(int)
        for group in units.groups:
            reader, count = uses[group.reader], len(group.units)
            paired[reader.name] += count * reader.weight.shape[-2]
            if reader.bias:
                paired[reader.bias] += count
            for (writer, _), block in zip(group.slots, group.blocks, strict=True):
                paired[writer[0]] += count * len(block)
        made, told = [], set(shifts)
        for number in sorted(zero.branches.ends):
            parts = [n for n in zero.branches.parameters(number) if n not in told]
            told |= set(parts)
            owners = sorted({name.rpartition(".")[0] for name in parts})
            prefix = os.path.commonprefix([owner.split(".") for owner in owners])
            label = ".".join(prefix)

            def short(name: str, label: str = label) -> str:
                return name.removeprefix(f"{label}.").removesuffix(".weight")

            flat: dict[str, int] = {}
            groups: dict[str, list[str]] = defaultdict(list)
            for name in parts:
                rest = self._own[name].numel() - paired[name]
                if rest and paired[name]:
                    flat[f"{short(name)}, the rest"] = rest
                elif rest:
                    zeroed = name in self._names or any(name == use.bias for use in zero.uses)
                    groups["weights" if zeroed else "others"].append(name)
            for some in groups.values():
                flat[", ".join(map(short, some))] = sum(self._own[name].numel() for name in some)
            for keys, found in pairs[number].items():
                made.append(Branch(
                    name=label or "net", kind=", ".join(short(key[0]) for key in keys),
                    correlations=tuple(group.correlation / total for group in found),
                    units=tuple(len(group.units) for group in found), flat=flat,
                ))  # fmt: skip
                flat = {}
            if flat:
                made.append(
                    Branch(name=label or "net", kind="", correlations=(), units=(), flat=flat)
                )
        return made
