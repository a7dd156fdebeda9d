"""Second moments of a data set, on which alone the square loss of a linear net depends."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from resid_theory._check import as_tensor, check_finite, check_int
from resid_theory.data.data import Data

_ROWS = 1 << 16  # samples cast to float64 at a time, so that a float32 data set is never doubled


@dataclass(frozen=True, kw_only=True, eq=False)
class Moments:
    r"""Second moments about zero, in float64; the data are not centred here.

    Two sets of moments add: ``a + b`` are the moments of the joined samples.

    Attributes:
        sxx: Moment of the inputs, :math:`\tfrac1m \sum x x^T`, (d, d).
        syx: Cross moment, :math:`\tfrac1m \sum y x^T`, (k, d).
        syy: Moment of the targets, :math:`\tfrac1m \sum y y^T`, (k, k).
        count: Number of samples m.

    Raises:
        ValueError: If shapes do not fit, an entry is not finite, sxx or syy is not symmetric or the
            count is below 1.

    Source:
        Li, Jiao, Han & Weissman, "Demystifying ResNet", arXiv:1611.01186, section 3.
    """

    sxx: Tensor
    syx: Tensor
    syy: Tensor
    count: int

    def __repr__(self) -> str:
        """The shapes and the number of samples."""
        shape = tuple(self.syx.shape)
        return f"Moments(syx {shape}, of {self.count} samples)"

    def __post_init__(self) -> None:
        check_int("count", self.count)
        given = {name: as_tensor(name, getattr(self, name)) for name in ("sxx", "syx", "syy")}
        for name, moment in given.items():
            # Converted, not refused: any real array is a moment, but all readers expect float64.
            copied = check_finite(name, moment).detach().to(torch.float64, copy=True)
            object.__setattr__(self, name, copied)
        shapes = [tuple(moment.shape) for moment in given.values()]
        d, k = (*shapes[1][::-1], None, None)[:2]
        if shapes != [(d, d), (k, d), (k, k)]:
            raise ValueError(
                f"moments: got sxx, syx, syy of shapes {shapes}, needs (d, d), (k, d), (k, k)"
            )
        for name, moment in (("sxx", self.sxx), ("syy", self.syy)):
            gap = (moment - moment.mT).max().item()  # of both signs
            if gap > 1e-10 * moment.abs().max().item():  # far above round-off, far below a mistake
                raise ValueError(f"{name}: differs from its transpose by {gap:.2g}, needs symmetry")

    @classmethod
    def of(cls, data: Any) -> "Moments":
        """Compute the moments of a data set in one pass.

        Args:
            data: Moments (returned as they are), a pair (x, y) of tensors or arrays, an object with
                ``.x`` and ``.y``, or a loader of such pairs, with x (m, d) and y (m, k).

        Returns:
            The moments, accumulated in float64 on the data's device.

        Raises:
            ValueError: If x or y is not a matrix, or widths change between batches.
        """
        if isinstance(data, Moments):
            return data
        total: Tensor | None = None
        count, width = 0, 0
        for x, y in (batch.pair for batch in Data.of(data).unweighted()):
            shapes = [tuple(s.shape) if isinstance(s, Tensor) else type(s).__name__ for s in (x, y)]
            if [len(shape) for shape in shapes if isinstance(shape, tuple)] != [2, 2]:
                raise ValueError(
                    f"data: x has shape {shapes[0]} and y {shapes[1]}; moments need matrices "
                    "(samples, features): flatten inputs, make labels one-hot"
                )
            if total is not None and (x.shape[1] != width or len(total) != width + y.shape[1]):
                raise ValueError(
                    f"data: a batch has widths {x.shape[1]} and {y.shape[1]}, the batches before "
                    f"it {width} and {len(total) - width}; needs equal widths"
                )
            width = x.shape[1]
            part = torch.zeros(*[width + y.shape[1]] * 2, dtype=torch.float64, device=x.device)
            for rows_x, rows_y in zip(x.split(_ROWS), y.split(_ROWS), strict=True):
                joined = torch.cat([rows_x.to(torch.float64), rows_y.to(torch.float64)], dim=1)
                part.addmm_(joined.mT, joined)
            total = part if total is None else total + part
            count += len(x)
        assert total is not None  # Data refuses to have no batch
        total = total / count
        return cls(
            sxx=total[:width, :width],
            syx=total[width:, :width],
            syy=total[width:, width:],
            count=count,
        )

    def to(self, device: torch.device | str) -> "Moments":
        """The same moments on another device.

        Args:
            device: Device of the result.

        Returns:
            A new object, or this one if it is there already.
        """
        if self.sxx.device == torch.device(device):
            return self
        return replace(
            self, sxx=self.sxx.to(device), syx=self.syx.to(device), syy=self.syy.to(device)
        )

    def __add__(self, other: "Moments") -> "Moments":
        """Moments of the two sample sets together."""
        if self.syx.shape != other.syx.shape:
            raise ValueError(
                f"moments: cannot add widths (targets, inputs) {tuple(self.syx.shape)} and "
                f"{tuple(other.syx.shape)}, needs equal ones"
            )
        count = self.count + other.count
        share = self.count / count
        mixed = {
            name: share * getattr(self, name) + (1 - share) * getattr(other, name)
            for name in ("sxx", "syx", "syy")
        }
        return Moments(count=count, **mixed)

    @property
    def is_whitened(self) -> bool:
        """True if sxx is the identity, to 1e-8 in every entry (a data set's own round-off)."""
        eye = torch.eye(len(self.sxx), dtype=self.sxx.dtype, device=self.sxx.device)
        return bool((self.sxx - eye).abs().max() <= 1e-8)
