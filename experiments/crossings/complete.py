"""Complete spectra of trained convolutional nets, and what estimators make of them.

None of the papers has one. All eigenvalues of the Hessian of a net at the end of its training are
known here, so every certificate and every interval of the estimators can be held against the truth.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.linalg import eigvalsh, qr
from torch import Tensor, nn

import resid_theory as rt
from experiments.claim import Arrays, Claim
from experiments.criteria import Criterion, below, rate
from experiments.parts import CHECKPOINTS, Each, Execution, Part, in_turn
from experiments.trainings import image_set
from resid_theory.curvature.columns import lower_columns
from resid_theory.runtime import store

STABILITY = "Yu & Tomasi, arXiv:1905.10944"
NUMBERS = ("trace", "Frobenius norm", "index", "10th percentile of |λ|", "median of |λ|")
PLACES = (0.1, 0.5)  # the percentiles
COVERED = 0.85  # share of intervals said to hold 95 % that has to be beaten


@dataclass(frozen=True, kw_only=True)
class CompleteSpectrum(Part):
    """All eigenvalues of a net's Hessian, those of its layers' blocks, and estimates of them.

    Attributes:
        net: A trained net of ``checkpoints/``; empty for a small one that is trained on the spot.
        weights: SHA-256 of its weights.
        dataset, samples, size: The first training images, and the side that they are brought to.
        k: Extreme eigenvalues at each end.
        probes, steps: Of each density.
        budget: Products of each trace.
        draws: Estimates of each kind, by products with the diagonal matrix of the eigenvalues.
    """

    net: str = ""
    weights: str = ""
    dataset: str = "cifar10"
    samples: int = 200
    size: int = 32
    k: int = 5
    probes: int = 4
    steps: int = 60
    budget: int = 60
    draws: int = 100

    def arrays(self, device: str) -> Arrays:
        """All of it."""
        return self.compute(Execution(device=device))

    def compute(self, execution: Execution, folder: Path | None = None) -> Arrays:
        """The same; ``folder`` keeps the columns, so that a killed call goes on."""
        images = image_set(self.dataset, "train", self.samples, self.size)
        data = images.inputs(images.pixels, torch.float64), images.labels
        net = self._trained(*data).double().eval()
        kept = None if folder is None else folder / "columns"
        matrix, names = complete_hessian(net, data, kept)
        arrays = _blocks(net, matrix, names)
        exact = torch.from_numpy(_eigenvalues(matrix, sum(p.numel() for p in net.parameters())))
        del matrix
        operator = rt.curvature_operator(net, "cross_entropy", data)
        pairs = rt.eigenpairs(operator, self.k, which="both", generator=self.seed)
        again = rt.trace(operator, budget=self.budget, generator=self.seed)
        return {
            **arrays,
            "eigenvalues": exact.numpy(),
            "found": torch.stack([pairs.values, pairs.bounds]).numpy(),
            "missed": np.array(pairs.missed_probability),
            "products": np.array([pairs.products, self.budget]),
            "trace": np.array([again.value, again.low, again.high]),
            **self._drawn(exact),
        }

    def _drawn(self, exact: Tensor) -> Arrays:
        """Estimates of ``NUMBERS``, (draws, numbers, value and ends), and errors of densities."""
        matrix, spectrum = _Diagonal(exact), rt.Spectrum.of(exact)
        drawn, distances = [], []
        for draw in range(self.draws):
            seed = self.seed + 1000 + draw
            density = rt.spectral_density(
                matrix, probes=self.probes, steps=self.steps, generator=seed
            )
            numbers = [
                rt.trace(matrix, budget=self.budget, generator=seed),
                rt.eigen.frobenius_norm(matrix, budget=self.budget, generator=seed),
                density.share_below(-spectrum.zero_threshold),
                *(density.quantile(place, magnitude=True) for place in PLACES),
            ]
            drawn.append([(each.value, each.low, each.high) for each in numbers])
            distances.append((density.wasserstein_distance(spectrum), density.wasserstein_error))
        return {"drawn": np.array(drawn), "distances": np.array(distances)}

    def _trained(self, x: Tensor, y: Tensor) -> nn.Module:
        if self.net:
            path = CHECKPOINTS / f"{self.net}.json"
            if (found := store.read_json(path)["manifest"]["sha256"]) != self.weights:
                raise ValueError(f"weights: {path} names {found}, needs {self.weights}")
            return rt.load_checkpoint(path)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            net = nn.Sequential(
                nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(),
                nn.Flatten(), nn.Linear(36, 10),
            ).double()  # fmt: skip
        for _ in range(60):
            loss = nn.functional.cross_entropy(net(x), y)
            slopes = torch.autograd.grad(loss, list(net.parameters()))
            with torch.no_grad():
                for parameter, slope in zip(net.parameters(), slopes, strict=True):
                    parameter.sub_(slope, alpha=0.5)
        return net


def complete_hessian(
    net: nn.Module, data: tuple[Tensor, Tensor], folder: Path | None = None
) -> tuple[Tensor, list[str]]:
    """The Hessian of the mean cross-entropy but for a null space, and the parameter of each row.

    Between ReLU and pooling a net's outputs are piecewise linear in each single weight, so that
    the diagonal block of the largest one is its Gauss-Newton matrix R^T R, of low rank. With B, its
    rows in the columns of all other parameters, and a QR decomposition of (B, R^T), the rows of
    Q^T B and Q^T R^T below the triangle are zero: what is left out has eigenvalues of zero only.
    Products with random vectors confirm the structure. ``folder`` keeps products, as
    ``rt.hessian`` does.
    """
    operator = rt.curvature_operator(net, "cross_entropy", data)
    sizes = {name: parameter.numel() for name, parameter in net.named_parameters()}
    largest = max(sizes, key=lambda name: sizes[name])
    rest = [name for name in sizes if name != largest]
    columns = lower_columns(operator, known=largest, folder=folder)
    held = columns.shape[1]
    rows = dict(zip(sizes, columns.split(list(sizes.values())), strict=True))
    own, below = torch.cat([rows[name] for name in rest]).tril(), rows[largest]
    own += own.tril(-1).mT
    root = _gauss_newton_root(net, data, largest)

    numbers = torch.arange(operator.shape[0]).split([sizes[name] for name in (*rest, largest)])
    places = dict(zip((*rest, largest), numbers, strict=True))
    back = torch.cat([places[name] for name in sizes])
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(len(back), 3, dtype=torch.float64, generator=generator)
    first, last = drawn.tensor_split([held])
    given = torch.cat([own @ first + below.mT @ last, below @ first + root.mT @ (root @ last)])
    found = operator @ drawn[back]
    if not (gap := float((found - given[back]).norm() / found.norm())) <= 1e-10:
        raise ValueError(f"net: not piecewise linear in {largest}, products differ by {gap:.2g}")

    # Only the triangle is formed.
    triangle = qr(torch.cat([below, root.mT], 1).numpy(), mode="r", overwrite_a=True)[0]
    left, right = torch.from_numpy(triangle[: min(triangle.shape)]).split([held, len(root)], dim=1)
    matrix = torch.cat([torch.cat([own, left.mT], 1), torch.cat([left, right @ right.mT], 1)])
    return matrix, [name for name in rest for _ in range(sizes[name])] + [largest] * len(left)


def _gauss_newton_root(net: nn.Module, data: tuple[Tensor, Tensor], name: str) -> Tensor:
    """R of R^T R, the block of one weight in the Gauss-Newton matrix of the mean cross-entropy."""
    others = {key: value.detach() for key, value in net.named_parameters()}
    weight = others.pop(name)

    def scores(weight: Tensor, x: Tensor) -> Tensor:
        return torch.func.functional_call(net, {**others, name: weight}, x[None])[0]

    x, shares = data[0], net(data[0]).detach().softmax(dim=1)
    jacobian = torch.func.vmap(torch.func.jacrev(scores), in_dims=(None, 0), chunk_size=25)
    slopes = jacobian(weight, x).flatten(2)  # (samples, classes, weights)
    centred = slopes - (shares[:, None] @ slopes)
    return (centred * (shares / len(x)).sqrt()[..., None]).flatten(0, 1)


class _Diagonal:
    """A diagonal matrix, whose products cost nothing."""

    def __init__(self, values: Tensor) -> None:
        self.values, self.shape = values, (len(values), len(values))
        self.dtype, self.device = values.dtype, values.device

    def __matmul__(self, vectors: Tensor) -> Tensor:
        return self.values[:, None] * vectors


def _blocks(net: nn.Module, matrix: Tensor, names: Sequence[str]) -> Arrays:
    """Sizes of the layers, the Frobenius norms of their blocks, and the diagonal ones' spectra."""
    sizes: dict[str, int] = {}
    for name, parameter in net.named_parameters():
        layer = name.rpartition(".")[0]
        sizes[layer] = sizes.get(layer, 0) + parameter.numel()
    layers = np.array([name.rpartition(".")[0] for name in names])
    rows = [matrix[layers == layer] for layer in sizes]
    own = [
        _eigenvalues(row[:, layers == layer], size)
        for row, (layer, size) in zip(rows, sizes.items(), strict=True)
    ]
    return {
        "sizes": np.array(list(sizes.values())),
        "block_norms": np.array(
            [[float(row[:, layers == layer].norm()) for layer in sizes] for row in rows]
        ),
        "block_eigenvalues": np.concatenate(own),
    }


def _eigenvalues(matrix: Tensor, size: int) -> NDArray[np.float64]:
    """All eigenvalues of a matrix whose other rows and columns, up to a size, are zero."""
    found = eigvalsh(matrix.numpy().T, overwrite_a=True, check_finite=False)
    return np.sort(np.concatenate([found, np.zeros(size - len(found))]))


def compute(*, device: str = "cpu", each: Each = in_turn, **settings: object) -> Arrays:
    """The one part."""
    (found,) = each([CompleteSpectrum(**settings)], device)  # type: ignore[arg-type]
    return dict(found)


def zero_threshold(a: Arrays) -> float:
    """What an eigenvalue is exact to."""
    values = a["eigenvalues"]
    return float(len(values) * np.finfo(float).eps * np.abs(values).max())


def judge(a: Arrays) -> list[Criterion]:
    """Hold certificate, intervals and errors against the complete spectrum."""
    values, (found, bounds), rounding = a["eigenvalues"], a["found"], zero_threshold(a)
    k = len(found) // 2
    gaps = np.abs(found - np.concatenate([values[::-1][:k], values[:k][::-1]]))
    null, negative = (np.abs(values) <= rounding).sum(), (values < -rounding).sum()
    squares, trace = float(np.sum(values**2)), float(values.sum())
    blocks, own = float(np.sum(a["block_norms"] ** 2)), float(a["block_eigenvalues"].sum())
    variance = 2 * len(values) / (len(values) + 2) * (squares - trace**2 / len(values))
    errors = (a["drawn"][:, 0, 0] - trace) ** 2 / (variance / a["products"][1])
    diagonal = np.sum(np.diag(a["block_norms"]) ** 2) / blocks
    truths = [
        trace, squares**0.5, negative / len(values),
        *(np.sort(np.abs(values))[int(np.ceil(p * len(values))) - 1] for p in PLACES),
    ]  # fmt: skip
    inside = [
        (a["drawn"][:, n, 1] - rounding <= truth) & (truth <= a["drawn"][:, n, 2] + rounding)
        for n, truth in enumerate(truths)
    ]
    return [
        Criterion(
            f"the {k} largest and {k} smallest eigenvalues, found by products with the net's "
            "Hessian, against those of the complete spectrum, rank by rank",
            "each within its bound; P(missed) <= 0.01",
            f"largest gap over bound {float((gaps / (bounds + rounding)).max()):.2g}, P(missed) "
            f"{float(a['missed']):.1e}, {int(a['products'][0])} products; P = {len(values)}, "
            f"{values[0]:.4g} to {values[-1]:.4g}, {int(negative)} negative, {int(null)} zero",
            bool((gaps <= bounds + rounding).all()) and float(a["missed"]) <= 0.01,
        ),
        Criterion(
            "squared norms of the layers' blocks add up to the sum of squared eigenvalues, traces "
            "of the diagonal ones to the sum of eigenvalues",
            "to 1e-10 of the sum of squares, of P times the largest",
            f"{abs(blocks / squares - 1):.1g} and {abs(own - trace):.1g}; diagonal blocks hold "
            f"{diagonal:.1%} of the sum of squares",
            abs(blocks / squares - 1) <= 1e-10
            and abs(own - trace) <= 1e-10 * len(values) * np.abs(values).max(),
        ),
        below(
            f"squared error of the trace from {int(a['products'][1])} products, in units of the "
            "variance of Hutchinson's estimate on the sphere",
            errors,
            1.0,
            source="never worse than plain Hutchinson",
        ),
        *(
            rate(
                f"95 % intervals of the {name} that hold the truth",
                int(hits.sum()),
                len(hits),
                least=COVERED,
                source="they are said to be 95 % intervals",
                shown=f"truth {truth:.4g}",
            )
            for name, hits, truth in zip(NUMBERS, inside, truths, strict=True)
        ),
        rate(
            "densities whose 1-Wasserstein distance from the truth is below the bound they report",
            int((a["distances"][:, 0] <= a["distances"][:, 1]).sum()),
            len(a["distances"]),
            least=COVERED,
            source="it is said to be the upper end of a 95 % interval",
            shown=f"median distance {np.median(a['distances'][:, 0]):.3g}, bound "
            f"{np.median(a['distances'][:, 1]):.3g}",
        ),
    ]


def draw(figure: Figure, a: Arrays) -> None:
    """Draw bulk, outliers, null space, and the layers' blocks."""
    (bulk, ranked), (norms, layers) = figure.subplots(2, 2)
    values, rounding = a["eigenvalues"], zero_threshold(a)
    scale = float(np.abs(values).max())
    bulk.hist(values, bins=200, log=True, color="tab:blue")
    bulk.plot(a["found"][0], np.ones(a["found"].shape[1]), "r|", label="found by products")
    bulk.set(xlabel="eigenvalue", ylabel="number", title=f"all {len(values)} eigenvalues")
    bulk.legend(fontsize="small")
    for sign, color in ((1, "tab:blue"), (-1, "tab:orange")):
        own = np.sort(sign * values[sign * values > rounding])[::-1]
        label = "positive" if sign > 0 else "negative, sign changed"
        ranked.plot(np.arange(1, len(own) + 1), own, ".", ms=3, color=color, label=label)
    ranked.axhline(rounding, color="gray", ls=":", label="rounding")
    ranked.set(xscale="log", yscale="log", xlabel="rank", ylabel="|eigenvalue|")
    ranked.set_title("outliers, bulk, null space", fontsize="medium")
    ranked.legend(fontsize="small")
    numbers = np.arange(1, len(a["sizes"]) + 1)
    image = norms.imshow(np.log10(np.maximum(a["block_norms"] / scale, 1e-6)), cmap="viridis")
    norms.set(xticks=numbers - 1, xticklabels=numbers, yticks=numbers - 1, yticklabels=numbers)
    norms.set(xlabel="layer", ylabel="layer", title="log10 of norm / max |λ|, blocks")
    figure.colorbar(image, ax=norms)
    ends = np.cumsum(a["sizes"])[:-1]
    for number, own in zip(numbers, np.split(a["block_eigenvalues"], ends), strict=True):
        sizes = np.sort(np.abs(own))[::-1]
        layers.plot(np.linspace(0, 1, len(sizes)), np.maximum(sizes, rounding), label=str(number))
    layers.set(yscale="log", xlabel="share of the layer's weights", ylabel="|eigenvalue|")
    layers.set_title("diagonal blocks, by layer", fontsize="medium")
    layers.legend(fontsize="small")


CLAIMS = [
    Claim(
        id="crossings/complete_spectrum",
        kind="law",
        source=f"{STABILITY}, section 5, whose simplified net of 5 layers it is; not in the paper",
        says="Certificates of extreme eigenvalues, intervals and errors of estimators hold on the "
        "complete Hessian spectrum of a trained convolutional net.",
        settings={
            "quick": {
                "dataset": "digits", "samples": 24, "size": 8, "k": 2, "probes": 3, "steps": 12,
                "budget": 20, "draws": 8, "scaled": "a net of 566 weights, 24 digits, 8 draws",
            },
            "paper": {
                "net": "simplified_plain_5",
                "weights": "a4f0d4149e1831e4af80b21fbe803936138d5b5731cd116b347426439c7e7172",
                "samples": 200, "k": 5, "probes": 4, "steps": 60, "budget": 60, "draws": 100,
            },
        },
        compute=compute,
        judge=judge,
        draw=draw,
    ),
]  # fmt: skip
