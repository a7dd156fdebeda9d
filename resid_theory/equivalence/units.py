"""Hidden units that can carry a linear map, and how many of them a block needs.

For a function with φ(t) − φ(−t) = κ t a unit may be flipped: v φ(w·x + b) = v φ(−w·x − b) +
κ v (w·x + b). Flipping the units of a set S adds κ V[:, S] W[S, :] x, and where that is minus the
shortcut P x the block has the same function without it. What S leaves, R = P + κ V[:, S] W[S, :],
is carried by units beside those that are there: the opposite of one, or a pair of a new direction.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

_GRID, _STEPS = 400, 300
_ENTRIES = 1 << 22  # of the matrix whose columns are the units' linear maps


@dataclass(frozen=True, kw_only=True)
class UnitKind:
    """Properties of an elementwise function that decide what it can carry."""

    function: Callable[[Tensor], Tensor]
    kappa: float | None  # of φ(t) − φ(−t) = κ t, None without one
    keeps_positive: bool  # φ(t) = t for t >= 0
    nonnegative: bool  # φ >= 0
    squares: bool  # φ(t) + φ(−t) = t²
    homogeneous: bool  # φ(c t) = c φ(t) for c > 0
    flat: bool  # φ(0) = 0, and both slopes there are 0
    zero: bool  # φ(0) = 0

    @classmethod
    @torch.no_grad()
    def of(cls, function: Callable[[Tensor], Tensor]) -> "UnitKind":
        """Measure a function in float64, at numbers of magnitudes 1e-12 … 1e12."""
        t = torch.logspace(-12, 12, _GRID, dtype=torch.float64, device="cpu")
        right, left = function(t.clone()), function(-t)
        odd, tiny = right - left, 1e-9
        kappa = float(odd[-1] / t[-1])
        rounding = 8 * torch.finfo(t.dtype).eps * (right.abs() + left.abs())
        scaled = function(3 * torch.cat([t, -t])) - 3 * torch.cat([right, left])
        slopes = function(t.new_tensor([-1e-150, 0.0, 1e-150]))  # below all thresholds
        holds = bool(((odd - kappa * t).abs() <= tiny * t + rounding).all()) and abs(kappa) > tiny
        return cls(
            function=function,
            kappa=kappa if holds else None,
            keeps_positive=bool(((right - t).abs() <= tiny * t).all()),
            nonnegative=bool((torch.cat([left, slopes, right]) >= 0).all()),
            squares=bool(((right + left - t**2).abs() <= tiny * t**2).all()),
            homogeneous=bool((scaled.abs() <= tiny * t.repeat(2)).all()),
            flat=bool((slopes.abs() <= 1e-159).all()),
            zero=float(slopes[1].abs()) <= 1e-14,
        )


@dataclass(frozen=True, kw_only=True)
class Distance:
    """Bounds of min over S of the Frobenius norm of P + κ V[:, S] W[S, :]."""

    low: float  # the best over the box [0, 1]^h, less what a duality gap leaves open
    high: float  # the value at `chosen`
    chosen: Tensor  # the best set that was found, (h,), bool
    decided: bool  # whether it is known that distance 0 is reached or is not


@dataclass(frozen=True, kw_only=True, eq=False)
class TwoLayers:
    """x -> P x + V φ(W x + b) + c, float64."""

    up: Tensor  # W, (h, d)
    bias: Tensor  # b, (h,)
    down: Tensor  # V, (o, h)
    offset: Tensor  # c, (o,)
    shortcut: Tensor  # P, (o, d)
    unit: UnitKind  # the function φ
    rounding: float  # relative size of rounding errors in the weights
    positive: bool  # x >= 0

    @property
    def tolerance(self) -> float:
        """Norm below which a matrix of the size of the shortcut is rounding."""
        size = float(self.shortcut.norm() + (self.down.norm(dim=0) * self.up.norm(dim=1)).sum())
        return 10 * self.rounding * size

    def merged(self) -> "TwoLayers":
        """The same function without dead units, and one unit for parallel ones."""
        parts = torch.cat([self.up, self.bias[:, None]], dim=1)
        down, shortcut, offset = self.down.clone(), self.shortcut.clone(), self.offset.clone()
        factors = parts.norm(dim=1) if self.unit.homogeneous else torch.ones(len(parts)).to(parts)
        rows = parts / factors[:, None]  # NaN without weights and bias, like nothing
        norms = rows.norm(dim=1)
        alike = (rows @ rows.T).abs() / (norms[:, None] * norms) > 1 - 1e-9
        kappa, kept = self.unit.kappa, dict[int, None]()
        for unit in range(len(parts)):
            if not self.up[unit].any():
                offset += down[:, unit] * self.unit.function(self.bias[unit : unit + 1])
            if not self.up[unit].any() or not down[:, unit].any():
                continue
            twins = (
                (other, sign)
                for other in alike[unit].nonzero().flatten().tolist() if other in kept
                for sign in ((1, -1) if kappa is not None else (1,))
                if (rows[unit] - sign * rows[other]).norm() <= 1e2 * self.rounding * norms[unit]
            )  # fmt: skip
            other, sign = next(twins, (unit, 1))
            if other == unit:
                kept[unit] = None
                continue
            weight = float(factors[unit] / factors[other]) * down[:, unit]
            down[:, other] += weight
            if sign != 1 and kappa is not None:  # φ(−t) = φ(t) − κ t
                shortcut -= kappa * torch.outer(weight, self.up[other])
                offset -= kappa * weight * self.bias[other]
        live = [unit for unit in kept if down[:, unit].any()]
        return replace(
            self, up=self.up[live], bias=self.bias[live], down=down[:, live], offset=offset,
            shortcut=shortcut,
        )  # fmt: skip

    def flipped(self, chosen: Tensor) -> "TwoLayers":
        """The same function with the units of a set flipped."""
        assert self.unit.kappa is not None
        sign = torch.where(chosen, -1.0, 1.0).to(self.up)
        moved = self.unit.kappa * self.down * chosen
        return replace(
            self, up=sign[:, None] * self.up, bias=sign * self.bias,
            offset=self.offset + moved @ self.bias, shortcut=self.shortcut + moved @ self.up,
        )  # fmt: skip

    def carried(self, tolerance: float) -> "TwoLayers":
        """The same function without a shortcut, with the fewest further units that are known."""
        R, kappa = self.shortcut, self.unit.kappa
        if float(R.norm()) <= tolerance:
            return self._with([], [], [])
        ways = []
        if self.positive and self.unit.keeps_positive:
            used = R.norm(dim=0) > tolerance
            ways.append(self._with([torch.eye(R.shape[1]).to(R)[used]], [0], [R[:, used]]))
        if kappa is not None:
            for beside in (_independent(self.up), list[int]()):
                old = self.up[beside]
                basis, triangle = torch.linalg.qr(old.T)
                V = torch.linalg.solve_triangular(triangle, (R @ basis).T, upper=True).T / kappa
                grown = self.down.clone()
                grown[:, beside] += V
                offset = self.offset - kappa * V @ self.bias[beside]
                rest = (R - (R @ basis) @ basis.T) / kappa
                columns, rows = _low_rank(rest, tolerance / abs(kappa))
                ways.append(
                    replace(self, down=grown, offset=offset)._with(
                        [-old, rows, -rows], [-self.bias[beside], 0, 0], [-V, columns, -columns]
                    )
                )
        if self.unit.squares:  # 4 t = (t + 1)² - (t - 1)²
            columns, rows = _low_rank(R / 4, tolerance / 4)
            ways.append(self._with([rows, -rows, rows, -rows], [1, -1, -1, 1],
                                   [columns, columns, -columns, -columns]))  # fmt: skip
        return min(ways, key=lambda way: len(way.up))

    def _with(
        self, up: Sequence[Tensor], bias: Sequence[Tensor | int], down: Sequence[Tensor]
    ) -> "TwoLayers":
        """Further units in the place of the shortcut; a number is a bias of all of its rows."""
        biases = [torch.as_tensor(b).expand(len(rows)) for b, rows in zip(bias, up, strict=True)]
        return replace(
            self, up=torch.cat([self.up, *up]), bias=torch.cat([self.bias, *biases]),
            down=torch.cat([self.down, *down], dim=1), shortcut=torch.zeros_like(self.shortcut),
        )  # fmt: skip

    def without_shortcut(self) -> tuple["TwoLayers", Distance | None]:
        """The same function without a shortcut, and the distance where flips are possible."""
        least = self.merged()
        if self.unit.kappa is None:
            return least.carried(self.tolerance), None
        found = nearest_set(least)
        ways = [least.carried(self.tolerance), least.flipped(found.chosen).carried(self.tolerance)]
        return min(ways, key=lambda way: len(way.up)), found


def _low_rank(matrix: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    """Columns and orthonormal rows whose product is a matrix but for small singular values."""
    left, size, right = torch.linalg.svd(matrix)
    rank = int((size > tolerance).sum())
    return left[:, :rank] * size[:rank], right[:rank]


def _independent(rows: Tensor) -> list[int]:
    """Indices of linearly independent rows that span all, the longest first."""
    rest, chosen = rows.clone(), []
    floor = 1e-10 * float(rows.norm())
    for _ in range(min(rows.shape)):
        norms = rest.norm(dim=1)
        best = int(norms.argmax())
        if float(norms[best]) <= floor:
            break
        chosen.append(best)
        unit = rest[best] / norms[best]
        rest = rest - torch.outer(rest @ unit, unit)
    return chosen


@torch.no_grad()
def nearest_set(block: TwoLayers) -> Distance:
    """Bound the distance of a block without parallel units to one that needs no shortcut.

    Returns:
        Bounds of min over s in {0, 1}^h of ‖P + κ Σ s_i v_i w_iᵀ‖, a binary least-squares problem,
        from below by the box, from above by single flips. Where the matrices v_i w_iᵀ are linearly
        independent, the least squares solution decides whether it is 0.
    """
    P, kappa, h = block.shortcut, block.unit.kappa, len(block.up)
    assert kappa is not None
    none = torch.zeros(h, dtype=torch.bool)
    if not h:
        return Distance(low=float(P.norm()), high=float(P.norm()), chosen=none, decided=True)
    G = kappa**2 * (block.down.T @ block.down) * (block.up @ block.up.T)
    c = kappa * ((block.down.T @ P) * block.up).sum(1)
    constant = float(P.square().sum())

    def value(s: Tensor) -> float:
        return float((P + kappa * (block.down * s) @ block.up).norm())

    # Nesterov's method on the box, and the linear lower bound at its last point.
    bound = float(G.abs().sum(1).max())
    s = ahead = torch.full((h,), 0.5, dtype=P.dtype)
    for step in range(_STEPS):
        new = (ahead - (G @ ahead + c) / bound).clamp(0, 1)
        if torch.equal(new, ahead) and torch.equal(new, s):
            break  # it would stay there
        ahead, s = new + step / (step + 3) * (new - s), new
    slope = 2 * (G @ s + c)
    gap = torch.minimum(-slope * s, slope * (1 - s)).sum()
    squared = constant + float(2 * c @ s + s @ G @ s + gap)
    low = max(squared, 0.0) ** 0.5
    source = torch.Generator().manual_seed(0)
    begins = [s.round(), torch.zeros_like(s)]
    begins += [torch.randint(2, (h,), generator=source).to(s) for _ in range(6)]
    unique = False
    if h <= P.numel() and h * P.numel() <= _ENTRIES:
        columns = kappa * (block.down[:, None, :] * block.up.T[None]).flatten(0, 1)
        left, size, right = torch.linalg.svd(columns, full_matrices=False)
        unique = bool(size[-1] > 1e-10 * size[0])
        if unique:
            exact = right.T @ ((left.T @ -P.flatten()) / size)
            begins = [exact.clamp(0, 1).round(), *begins]
    best = min((_descended(start, G, c) for start in begins), key=value)
    high = value(best)
    reached = high <= block.tolerance
    # The square of a number near rounding has lost it: such a bound says nothing.
    low = 0.0 if low**2 <= 1e-13 * constant else min(low, high)
    return Distance(
        low=low, high=high, chosen=best.bool(), decided=reached or unique or low > block.tolerance
    )


def _descended(s: Tensor, G: Tensor, c: Tensor) -> Tensor:
    """A set that no single flip improves."""
    s, product = s.clone(), G @ s
    for _ in range(4 * len(s)):
        gain = (1 - 2 * s) * 2 * (product + c) + G.diagonal()
        best = int(gain.argmin())
        if float(gain[best]) >= 0:
            break
        product += (1 - 2 * s[best]) * G[best]
        s[best] = 1 - s[best]
    return s
