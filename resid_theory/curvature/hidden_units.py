"""Hidden units of branches: which weights are paired, and the loss to second order in each pair."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from resid_theory.curvature.loss_graph import WeightUse
from resid_theory.curvature.zero_pass import ZeroPass

ROUND_OFF = 1e-8  # relative difference of products that are equal but for round-off
SIDES = 1e-3  # that of means over both sides of a kink, and what these leave of a response of zero
_PROBES = 4
_CHECKED = 1e-6  # relative difference of pushed and assembled responses

Key = tuple[Any, ...]
Sides = list[ZeroPass]
"""Graphs of one batch: at zero, or on both sides of it, whose responses are averaged."""


@dataclass(kw_only=True, eq=False)
class UnitGroup:
    """Hidden units whose inputs respond alike.

    Attributes:
        reader: Weight with a row for each unit.
        units: Numbers of the rows, (s,).
        slots: Weights with a column for each unit, and the numbers of the columns.
        blocks: For each slot the coupling B, (out, in).
    """

    reader: Key
    units: Tensor
    slots: list[tuple[Key, Tensor]]
    blocks: list[Tensor]

    @property
    def correlation(self) -> Tensor:
        """Couplings of all slots below one another."""
        return torch.cat(self.blocks)


class HiddenUnits:
    """Pairs of weights in branches, found by changes that are sent from readers to writers."""

    def __init__(self, batches: Callable[[], Iterable[Sides]], *, exact: bool) -> None:
        self._batches, self._exact = batches, exact
        self._draws = torch.Generator().manual_seed(0)
        self._scales: dict[Key, Tensor] = {}
        self._columns: dict[Key, int] = {}
        self._outputs: dict[Key, int] = {}
        self.groups: list[UnitGroup] = []
        self._pair(self._responses())
        self._couple()

    # -- pairs -------------------------------------------------------------------------------------

    def _responses(self) -> dict[Key, Tensor]:
        """Responses of each writer's columns to equal changes of all units, and to scaled ones."""
        directions: dict[Key, Tensor] = {}
        found: dict[Key, list[Tensor]] = defaultdict(list)
        for sides in self._batches():
            first = sides[0]
            self._outputs |= {use.key: use.weight.shape[-1] for use in first.uses}
            for number in first.readers:
                use = first.uses[number]
                self._columns[use.key] = inputs_of(use).shape[-1]
                if use.key not in directions:
                    directions[use.key] = self._drawn(self._columns[use.key])
                    # The integer tells the reader, the rest the unit.
                    order = torch.randperm(use.units, generator=self._draws)
                    start = 1 + len(self._scales)
                    self._scales[use.key] = start + order.double() / use.units
            equal, scaled = {}, {}
            for number in first.readers:
                use = first.uses[number]
                z = inputs_of(use) @ directions[use.key].to(use.input)
                width = use.weight.shape[-1]
                equal[number] = z[..., None].expand(*z.shape, width)
                scaled[number] = equal[number] * self._scales[use.key].to(z).view(-1, 1, width)
            one, other = pushed(sides, equal), pushed(sides, scaled)
            for number, v in one.items():
                probes = self._drawn(v.shape[1], _PROBES).to(v)
                both = [(side.mT @ probes).flatten(0, 1).cpu() for side in (v, other[number])]
                found[first.uses[number].key].append(torch.stack(both))
        return {key: torch.cat(parts, dim=-1) for key, parts in found.items()}

    def _drawn(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self._draws, dtype=torch.float64)

    def _pair(self, responses: dict[Key, Tensor]) -> None:
        """Find the unit that each column of a writer reads, and units that are alike."""
        slots: dict[Key, dict[int, list[tuple[Key, int]]]] = defaultdict(lambda: defaultdict(list))
        lengths = {writer: one.norm(dim=1) for writer, (one, _) in responses.items()}
        top = max((float(each.max()) for each in lengths.values()), default=0.0)
        for writer, (one, other) in responses.items():
            seen = lengths[writer] > (0.0 if self._exact else SIDES * top)
            ratios = (one * other).sum(1) / one.square().sum(1)
            gaps = (other - ratios[:, None] * one).norm(dim=1) / other.norm(dim=1)
            for column in seen.nonzero().flatten().tolist():
                found = self._of_scale(float(ratios[column]))
                if found is None or float(gaps[column]) > _CHECKED:
                    raise _mixed(writer)
                reader, unit = found
                slots[reader][unit].append((writer, column))
        for key, units in slots.items():
            kinds: dict[tuple[Key, ...], list[int]] = defaultdict(list)
            for unit, places in units.items():
                kinds[tuple(writer for writer, _ in places)].append(unit)
            for writers, members in kinds.items():
                columns = torch.tensor([[c for _, c in units[unit]] for unit in members])
                each = [responses[w][0][columns[:, n]] for n, w in enumerate(writers)]
                for alike in _clusters(torch.hstack(each)):
                    self.groups.append(UnitGroup(
                        reader=key, units=torch.tensor(members)[alike],
                        slots=[(w, columns[alike, n]) for n, w in enumerate(writers)],
                        blocks=[torch.zeros(self._outputs[w], self._columns[key]).double()
                                for w in writers],
                    ))  # fmt: skip

    def _of_scale(self, ratio: float) -> tuple[Key, int] | None:
        """Reader and number of the unit that has a scale; None if none has."""
        for key, scales in self._scales.items():
            distance = (scales - ratio).abs()
            if distance.min() * len(scales) < 0.1:
                return key, int(distance.argmin())
        return None

    # -- couplings ---------------------------------------------------------------------------------

    def _couple(self) -> None:
        """Send the columns of the inputs through units of a group, as many as it has at a time."""
        places = {key: torch.zeros_like(scale).long() for key, scale in self._scales.items()}
        counts = {key: torch.zeros_like(place) for key, place in places.items()}
        for group in self.groups:
            places[group.reader][group.units] = torch.arange(len(group.units))
            counts[group.reader][group.units] = len(group.units)
        rounds = max((-(-self._columns[g.reader] // len(g.units)) for g in self.groups), default=0)
        tries = {
            key: self._drawn(len(scale), self._columns[key]) for key, scale in self._scales.items()
        }
        self.total = 0.0
        pushed_tries: dict[Key, Tensor] = {}
        for sides in self._batches():
            first = sides[0]
            self.total += first.weight
            for turn in range(rounds):
                at = {key: turn * counts[key] + place for key, place in places.items()}
                moves = {n: _column(first.uses[n], at[first.uses[n].key]) for n in first.readers}
                found = self._at_writers(sides, moves)
                for group in self.groups:
                    self._take(group, at[group.reader][group.units], found)
            moves = {}
            for number in first.readers:
                use = first.uses[number]
                weight = tries[use.key].view(len(use.input), -1, self._columns[use.key])
                moves[number] = inputs_of(use) @ weight.to(use.input).mT
            for key, value in self._at_writers(sides, moves).items():
                pushed_tries[key] = pushed_tries.get(key, 0.0) + value
        self._check(tries, pushed_tries)

    def _at_writers(self, sides: Sides, moves: dict[int, Tensor]) -> dict[Key, Tensor]:
        """Weighted change of the loss's gradient in each writer, (out, columns)."""
        first, found = sides[0], dict[Key, Tensor]()
        for number, v in pushed(sides, moves).items():
            change = first.weight * (first.writers[number].mT @ v)
            change = torch.hstack(list(change)).cpu()
            key = first.uses[number].key
            found[key] = found[key] + change if key in found else change
        return found

    def _take(self, group: UnitGroup, columns: Tensor, found: dict[Key, Tensor]) -> None:
        some = columns < self._columns[group.reader]  # the others had their turn
        for (writer, places), block in zip(group.slots, group.blocks, strict=True):
            if writer in found:
                block[:, columns[some]] += found[writer][:, places[some]]

    def _check(self, tries: dict[Key, Tensor], pushed_tries: dict[Key, Tensor]) -> None:
        """Compare what was assembled with a change in all entries of all readers at once."""
        expected = {key: torch.zeros_like(value) for key, value in pushed_tries.items()}
        for group in self.groups:
            for (writer, columns), block in zip(group.slots, group.blocks, strict=True):
                expected[writer][:, columns] += block @ tries[group.reader][group.units].mT
        bound = _CHECKED if self._exact else SIDES
        top = max((float(value.norm()) for value in pushed_tries.values()), default=0.0)
        for writer, value in pushed_tries.items():
            if float((value - expected[writer]).norm()) > bound * top:
                raise _mixed(writer)


def inputs_of(use: WeightUse) -> Tensor:
    """The input of a use, with a column of ones for a bias, (parts, T, columns)."""
    x = use.input.detach()
    return torch.cat([x, torch.ones_like(x[..., :1])], dim=-1) if use.bias else x


def pushed(sides: Sides, moves: dict[int, Tensor]) -> dict[int, Tensor]:
    """Mean over sides of what moves change."""
    total: dict[int, Tensor] = {}
    for side in sides:
        for number, v in side.push(moves).items():
            part = v / len(sides)
            total[number] = total[number] + part if number in total else part
    return total


def _column(use: WeightUse, columns: Tensor) -> Tensor:
    """For each unit one column of its input, counted round and round."""
    x, width = inputs_of(use), use.weight.shape[-1]
    at = columns.view(len(x), 1, width).to(x.device) % x.shape[-1]
    return x.gather(-1, at.expand(-1, x.shape[1], -1))


def _clusters(rows: Tensor) -> Iterator[Tensor]:
    """Numbers of rows that are equal but for round-off."""
    rest = torch.arange(len(rows))
    while len(rest):
        near = (rows[rest] - rows[rest[0]]).norm(dim=1) <= ROUND_OFF * rows.norm()
        yield rest[near]
        rest = rest[~near]


def _mixed(writer: Key) -> ValueError:
    return ValueError(
        f"net: a column of {writer[0]!r} reads several hidden units of its branch, or units that "
        "are not moved by linear maps alone; needs one hidden unit for each column"
    )


class PredictedLoss:
    """Half the quadratic form of a predicted Hessian."""

    def __init__(
        self, uses: Mapping[Key, WeightUse], units: HiddenUnits, total: float,
        shifts: Sequence[str], shift: Tensor | None,
    ) -> None:  # fmt: skip
        self.uses, self._units, self.total = uses, units, total
        self._shifts, self._shift = shifts, shift

    def __call__(self, moves: Mapping[str, Tensor]) -> Tensor:
        """The form, at moves of parameters by name."""

        def taken(name: str, entries: Tensor | None) -> Tensor:
            assert entries is not None
            return moves[name].flatten()[entries.cpu()]

        def weight(use: WeightUse) -> Tensor:
            found = taken(use.name, use.entries)
            return found.view(-1, *found.shape[-2:])

        value = torch.zeros((), requires_grad=True)
        for group in self._units.groups:
            reader = self.uses[group.reader]
            rows = weight(reader).mT
            if reader.bias:
                bias = taken(reader.bias, reader.bias_entries)[..., None]
                rows = torch.cat([rows, bias], dim=-1)
            rows = rows.flatten(0, 1)[group.units]
            for (writer, columns), block in zip(group.slots, group.blocks, strict=True):
                out = weight(self.uses[writer]).flatten(0, 1)[columns]
                value = value + (out @ block * rows).sum() / self.total
        if self._shift is not None:
            parts = [moves[name].flatten() for name in self._shifts]
            alike = len(self._shift) == len(parts[0])  # each moves all as the others do
            moved = torch.stack(parts).sum(0) if alike else torch.cat(parts)
            value = value + moved @ self._shift @ moved / 2
        return value


def compare_product(
    batches: Callable[[], Iterable[Sides]], own: Mapping[str, Tensor], predicted: PredictedLoss,
    *, bound: float,
) -> None:  # fmt: skip
    """Multiply a random vector by the Hessian in some parameters and by the predicted one."""
    draws = torch.Generator().manual_seed(3)
    vector = {
        name: torch.randn(p.shape, generator=draws, dtype=torch.float64) for name, p in own.items()
    }
    found = {name: torch.zeros_like(v) for name, v in vector.items()}
    for sides in batches():
        for side in sides:
            share = side.weight / predicted.total / len(sides)
            slopes = torch.autograd.grad(
                side.loss, list(own.values()), create_graph=True, materialize_grads=True
            )
            pairs = zip(slopes, vector.values(), strict=True)
            along = torch.stack([(slope * v.to(slope)).sum() for slope, v in pairs]).sum()
            products = torch.autograd.grad(along, list(own.values()), materialize_grads=True)
            for into, product in zip(found.values(), products, strict=True):
                into.add_(product.cpu(), alpha=share)
    moves = {name: v.requires_grad_() for name, v in vector.items()}
    expected = torch.autograd.grad(predicted(moves), list(moves.values()), materialize_grads=True)
    gaps = {
        name: float((found[name] - value).norm())
        for name, value in zip(moves, expected, strict=True)
    }
    top = max(float(product.norm()) for product in found.values())
    worst = max(gaps, key=lambda name: gaps[name])
    if not gaps[worst] <= bound * top:
        raise ValueError(
            f"net: {worst!r} has curvature at zero weights that is neither that of a first layer "
            "with a last one nor that of a bias on the stream; not covered are products of two "
            "layers without a third, parameters of zero in front of a last layer, gated biases"
        )
