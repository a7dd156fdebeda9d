"""Hessians along full-batch gradient descent: the parts of Figures 5 and 6."""

from dataclasses import dataclass

import numpy as np
import torch

import resid_theory as rt
from experiments.demystifying_resnet.nets import (
    LIMIT,
    PLAIN_AND_TWO,
    build,
    compared,
    initial_weights,
    is_linear,
    least_loss,
    whitened,
)
from experiments.parts import Part

THRESHOLDS = (0.0, 1e-14, 1e-12, 1e-10, 1e-8)  # of the largest |λ|, for the index
SLOWER = 30  # the lead of a descent has this part of its rate


@dataclass(frozen=True, kw_only=True)
class HessiansAlong(Part):
    """Spectral statistics along the descents of one net, one row for each seed and measured epoch.

    Measured are ``checkpoints`` epochs, evenly in the logarithm of the loss above the optimum, and
    every second of the first ``early``. ``lead`` epochs at a smaller rate come first, so that
    large losses are passed in small steps.
    """

    dataset: str = "digits"
    samples: int | None = None
    net: str = "two_shortcut"
    depth: int = 2
    rate: float = 0.1
    epochs: int = 1000
    lead: int = 0
    checkpoints: int = 20
    early: int = 0
    scale: float = 0.01
    seeds: int = 1
    loss: str = "square"
    pre: str | None = None
    mid: str | None = None
    post: str | None = None

    def arrays(self, device: str) -> dict[str, np.ndarray]:
        activations = dict(pre=self.pre, mid=self.mid, post=self.post)
        data, net = whitened(self.dataset, self.samples), compared(**activations)[self.net]
        model = build(self.depth, net, **activations)
        number, first = list(PLAIN_AND_TWO).index(self.net), self.seed
        weights = initial_weights(
            model, net["init"], self.seeds, self.scale, number, self.depth, first=first
        )
        optimum = least_loss(data, self.loss, linear=is_linear(**activations))
        rows: list[dict] = []
        losses, gradients, points = self._descents(model, data, weights)
        for seed in range(self.seeds):
            found = {*_even_in_loss(losses[:, seed] - optimum, self.checkpoints)}
            for epoch in sorted(found | set(range(0, self.early, 2))):
                statistics = self._statistics(model, data, points[epoch, seed])
                row = {"seed": first + seed, "epoch": epoch, "loss": losses[epoch, seed]}
                rows.append(row | statistics)
        table = {key: np.array([row[key] for row in rows]) for key in rows[0]}
        return {**table, "gradient": gradients.T}

    def _descents(
        self, model: rt.ShortcutNet, data: rt.Regression, weights: torch.Tensor
    ) -> tuple[np.ndarray, np.ndarray, torch.Tensor]:
        """Loss and gradient norm, (epochs, seeds), and the weights at every epoch."""
        losses, gradients, points = [], [], []
        for rate, epochs in ((self.rate / SLOWER, self.lead), (self.rate, self.epochs)):
            path = rt.gradient_descent(
                model, self.loss, data, weights=weights, learning_rate=rate, epochs=epochs,
                limit=LIMIT, keep=range(epochs + 1),
            )  # fmt: skip
            if bool(path.diverged.any()):
                raise ValueError(
                    f"rates: got {self.rate:g} for {self.net}, whose loss is above {LIMIT:g} after "
                    f"{int(path.diverged_at.max())} epochs; needs a smaller one"
                )
            weights, met = path.weights, slice(1 if losses else 0, None)
            losses.append(path.loss[met])
            gradients.append(path.gradient_norm[met])
            points.append(path.kept_weights[met])
        return torch.cat(losses).numpy(), torch.cat(gradients).numpy(), torch.cat(points)

    def _statistics(
        self, model: rt.ShortcutNet, data: rt.Regression, point: torch.Tensor
    ) -> dict[str, object]:
        with torch.no_grad():
            model.get_parameter("weights").copy_(point)
        spectrum = rt.hessian_spectrum(model, self.loss, data)
        largest, size, error = spectrum.max_magnitude, spectrum.size, spectrum.zero_threshold
        return {
            "max": largest,
            "p10": spectrum.magnitude_percentile(10.0),
            "index": spectrum.count_below(-error) / size,
            "unsure": spectrum.count_within(error) / size,
            "negative": [spectrum.count_below(-t * largest) / size for t in THRESHOLDS],
        }


def _even_in_loss(excess: np.ndarray, count: int) -> list[int]:
    """Epochs at which the loss first reaches levels that are spaced evenly in its logarithm."""
    levels = np.geomspace(excess[0], excess[-1], count)
    passed = [np.flatnonzero(excess <= level) for level in levels]
    return [int(epochs[0]) for epochs in passed if len(epochs)]
