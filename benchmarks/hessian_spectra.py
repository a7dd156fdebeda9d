"""Exact eigenvalues of 22 curvature matrices, by which estimators are tuned and judged.

    python -m benchmarks.hessian_spectra       # writes hessian_spectra.npz beside this file

Nets on digits, MNIST at 7 x 7 and CIFAR-10 at 8 x 8, at their initial weights and trained (full
batch, Adam). Half of them serve to tune, half are judged once; each kind of net is in both.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import resid_theory as rt

FILE = Path(__file__).with_name("hessian_spectra.npz")
# Fixed before any estimator was tuned; trained nets end in "trained".
TUNE = (
    "digits MLP, initial",
    "MNIST MLP, trained",
    "shortcut net n=2 near zero",
    "shortcut net n=2, trained",
    "conv net, trained",
    "attention, initial",
    "Gauss-Newton of conv net, initial",
    "Gauss-Newton of MNIST MLP, trained",
    "empirical Fisher of digits MLP, initial",
    "squared loss of digits MLP, trained",
    "residual MLP, trained",
)
JUDGE = (
    "digits MLP, trained",
    "MNIST MLP, initial",
    "shortcut net n=1 near zero",
    "shortcut net n=3, trained",
    "conv net, initial",
    "attention, trained",
    "Gauss-Newton of conv net, trained",
    "Gauss-Newton of attention, initial",
    "empirical Fisher of digits MLP, trained",
    "squared loss of conv net, initial",
    "residual MLP, initial",
)


class Attention(nn.Module):
    """One head over the rows of an 8 x 8 image, and a perceptron, both with shortcuts."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.embed, self.read = nn.Linear(8, width), nn.Linear(width, 10)
        self.place = nn.Parameter(0.1 * torch.randn(8, width))
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.reshape(len(x), 8, 8)) + self.place
        scores = self.query(x) @ self.key(x).transpose(1, 2) / x.shape[-1] ** 0.5
        x = x + scores.softmax(-1) @ self.value(x)
        return self.read((x + self.mlp(x)).mean(1))


class Residual(nn.Module):
    """Five one-layer residual blocks of width 20 between two linear maps."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(49, 20), nn.Linear(20, 10)
        self.blocks = nn.ModuleList(nn.Linear(20, 20) for _ in range(5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        for block in self.blocks:
            x = x + torch.relu(block(x))
        return self.leave(x)


def perceptron(widths: list[int], act: type[nn.Module]) -> nn.Sequential:
    """Linear maps with an activation between any two."""
    layers: list[nn.Module] = []
    for before, after in zip(widths, widths[1:], strict=False):
        layers += [nn.Linear(before, after), act()]
    return nn.Sequential(*layers[:-1])


def conv_net() -> nn.Sequential:
    """Two convolutions, a mean over places, a linear map: P = 3,202."""
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(12, 24, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 10),
    )  # fmt: skip


def shortcut_net(depth: int) -> nn.Module:
    """A linear n-shortcut net of width 12 near zero, about 2,000 weights."""
    net = rt.ShortcutNet(12, 14 // depth, depth)
    return rt.initialize(net, "near_zero", generator=0)


def images(name: str, samples: int) -> tuple[Tensor, Tensor]:
    """Inputs, flat but for CIFAR-10, and labels."""
    size, channels = {"digits": (8, 1), "mnist": (7, 1), "cifar10": (8, 3)}[name]
    data = rt.load_images(name, samples=samples, size=size, channels=channels, progress=False)
    x = data.inputs(data.pixels, torch.float64)
    return (x if channels == 3 else x.flatten(1)), data.labels


def whitened(samples: int = 500) -> tuple[Tensor, Tensor]:
    """Twelve principal components of MNIST and targets of as many entries."""
    data = rt.load_whitened("mnist", 12, samples=samples, progress=False)
    return data.x, nn.functional.pad(data.y, (0, 2))


# Net, data and loss by the words after "of".
PROBLEMS: dict[str, tuple[Callable[[], nn.Module], Callable[[], tuple[Tensor, Tensor]]]] = {
    "digits MLP": (lambda: perceptron([64, 24, 16, 10], nn.ReLU), lambda: images("digits", 600)),
    "MNIST MLP": (lambda: perceptron([49, 30, 20, 10], nn.Tanh), lambda: images("mnist", 600)),
    "conv net": (conv_net, lambda: images("cifar10", 300)),
    "attention": (Attention, lambda: images("digits", 400)),
    "residual MLP": (Residual, lambda: images("mnist", 600)),
    "shortcut net n=1": (lambda: shortcut_net(1), whitened),
    "shortcut net n=2": (lambda: shortcut_net(2), whitened),
    "shortcut net n=3": (lambda: shortcut_net(3), whitened),
}


def eigenvalues(name: str) -> np.ndarray:
    """All eigenvalues of a matrix by its name."""
    squared = name.startswith("squared loss of ") or "shortcut" in name
    matrix = next(
        (m for m in ("Gauss-Newton", "empirical Fisher") if name.startswith(m)), "Hessian"
    )
    problem = next(part for part in PROBLEMS if part in name)
    build, load = PROBLEMS[problem]
    torch.manual_seed(0)
    net, (x, y) = build().double(), load()
    if squared and y.dim() == 1:
        y = nn.functional.one_hot(y, 10).double()
    loss = nn.MSELoss() if squared else nn.CrossEntropyLoss()
    if name.endswith("trained"):
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
        for _ in range(300):
            optimizer.zero_grad()
            loss(net(x), y).backward()
            optimizer.step()
    kind = matrix.lower().replace("-", "_").replace(" ", "_")
    operator = rt.curvature_operator(net, loss, (x, y), matrix=kind)
    dense = operator.dense()
    return torch.linalg.eigvalsh((dense + dense.T) / 2).numpy()


def load() -> dict[str, Tensor]:
    """The stored eigenvalues by name, ascending, float64."""
    with np.load(FILE, allow_pickle=False) as stored:
        return {name: torch.from_numpy(stored[name]).double() for name in (*TUNE, *JUDGE)}


def main() -> None:
    """Compute and store."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    found = {}
    for name in (*TUNE, *JUDGE):
        found[name] = eigenvalues(name)
        largest = abs(found[name]).max()
        outside = (abs(found[name]) > 0.1 * largest).sum()
        print(f"{name:40} P = {len(found[name]):5}, max|λ| {largest:8.3g}, "
              f"{outside:4} above a tenth", flush=True)  # fmt: skip
    np.savez_compressed(FILE, **found)


if __name__ == "__main__":
    main()
