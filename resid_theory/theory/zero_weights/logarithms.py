"""Products of many numbers or matrices, carried as signs and logarithms of magnitudes."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

__all__ = ["Logarithms", "carried"]

_STEPS = 8  # mixings between two divisions by the length


@dataclass(frozen=True, kw_only=True, eq=False)
class Logarithms:
    """Numbers as sign times exponential; vectors as directions times exponentials."""

    log: Tensor
    sign: Tensor

    @staticmethod
    def of(numbers: Tensor) -> "Logarithms":
        """Those of numbers, -inf for zeros."""
        return Logarithms(log=numbers.abs().log(), sign=numbers.sign())

    def __mul__(self, other: "Logarithms") -> "Logarithms":
        """Those of the products."""
        sign = self.sign * other.sign
        none = torch.full_like(self.log, -math.inf)
        return Logarithms(log=torch.where(sign == 0, none, self.log + other.log), sign=sign)

    def times(self, log: Tensor) -> "Logarithms":
        """Those of products with positive numbers of given logarithms."""
        return Logarithms(log=self.log + log, sign=self.sign)

    def before(self) -> "Logarithms":
        """Product of all earlier numbers."""
        one = torch.ones(1, dtype=torch.float64)
        return Logarithms(
            log=torch.cat([0 * one, self.log[:-1].cumsum(0)]),
            sign=torch.cat([one, self.sign[:-1].cumprod(0)]),
        )

    def after(self) -> "Logarithms":
        """Product of all later numbers."""
        back = Logarithms(log=self.log.flip(0), sign=self.sign.flip(0)).before()
        return Logarithms(log=back.log.flip(0), sign=back.sign.flip(0))

    def value(self) -> Tensor:
        """The numbers."""
        return self.sign * self.log.exp()


def carried(mixings: np.ndarray, vector: np.ndarray) -> tuple[Logarithms, Logarithms]:
    """A vector in front of each mixing, and behind the last, as direction and log of length."""
    directions, logs = np.empty((len(mixings), len(vector))), np.empty(len(mixings))
    log = 0.0
    for k, mixing in enumerate(mixings):
        if k % _STEPS == 0 and (size := float(np.abs(vector).max())):
            vector, log = vector / size, log + math.log(size)
        directions[k], logs[k] = vector, log
        vector = mixing @ vector
    last = Logarithms(log=torch.tensor(log, dtype=torch.float64), sign=torch.from_numpy(vector))
    return Logarithms(log=torch.from_numpy(logs), sign=torch.from_numpy(directions)), last
