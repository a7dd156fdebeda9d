"""Speed of products with curvature matrices, beside plain torch: one table.

    python -m benchmarks.products [ROW ...] [--repeats 5]

Processor time of one thread, float32, all sides in turns; a column of ratios says how many times
the time of ours the other way takes. "retained" keeps torch's own graph of the gradient, as
PyHessian does, "anew" makes it for every product, as hessian-eigenthings and curvlinops do. Of the
Gauss-Newton matrix, "anew" differentiates J^T u by u (double backward), and "forward" pushes the
vector through the net in forward mode and pulls back on a kept graph. Set-up is given in products.
CIFAR-10 images are drawn at random where the data set is not there; times do not depend on that.
"""

import argparse
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import resid_theory as rt
from benchmarks.timing import medians

COLUMNS = (
    "net", "P", "ms", "retained", "anew / ours anew", "block of 4", "set-up", "set-up of torch",
    "Gauss-Newton, ms", "anew", "forward", "differs by",
)  # fmt: skip


def images(count: int) -> tuple[Tensor, Tensor]:
    """CIFAR-10 as inputs and labels, or noise of that shape."""
    try:
        data = rt.load_images("cifar10", samples=count, progress=False)
    except FileNotFoundError:
        generator = torch.Generator().manual_seed(0)
        return torch.randn(count, 3, 32, 32, generator=generator), torch.arange(count) % 10
    return data.inputs(data.pixels, torch.float32), data.labels


def perceptron() -> nn.Sequential:
    """Eight layers of width 128: P = 116,874."""
    hidden = [m for _ in range(7) for m in (nn.Linear(128, 128), nn.ReLU())]
    return nn.Sequential(*hidden, nn.Linear(128, 10))


def noise(samples: int) -> tuple[Tensor, Tensor]:
    """Inputs and labels for the perceptron."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(samples, 128, generator=generator), torch.arange(samples) % 10


class Encoder(nn.Module):
    """A transformer of 10 million weights that gives ten logits for each sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(1000, 448)
        self.layers = nn.Sequential(*(
            nn.TransformerEncoderLayer(448, 8, 1792, 0.0, batch_first=True) for _ in range(4)
        ))  # fmt: skip
        self.read = nn.Linear(448, 10)

    def forward(self, words: Tensor) -> Tensor:
        """Logits of sequences."""
        read: Tensor = self.read(self.layers(self.words(words)).mean(1))
        return read


def sequences() -> tuple[Tensor, Tensor]:
    """16 sequences of 128 words: 2,048 tokens."""
    words = torch.randint(1000, (16, 128), generator=torch.Generator().manual_seed(0))
    return words, torch.arange(16) % 10


ROWS: dict[str, tuple[str, Callable[[], nn.Module], Callable[[], tuple[Tensor, Tensor]]]] = {
    "mlp-64": ("8-layer MLP, 64 samples", perceptron, lambda: noise(64)),
    "mlp": ("8-layer MLP, 2,048 samples", perceptron, lambda: noise(2048)),
    "resnet": ("ResNet-20, 32 images", lambda: rt.full_net(20, generator=0), lambda: images(32)),
    "dirac": ("DiracNet-34, 8 images", lambda: rt.diracnet(34, generator=0), lambda: images(8)),
    "transformer": ("transformer, 2,048 tokens", Encoder, sequences),
}


def joined(parts: tuple[Tensor, ...]) -> Tensor:
    """One vector of all parameters' parts."""
    return torch.cat([part.reshape(-1) for part in parts])


class Plain:
    """Products as a script has them."""

    def __init__(self, net: nn.Module, x: Tensor, y: Tensor) -> None:
        self.net, self.x, self.y = net, x, y
        self.weights = dict(net.named_parameters())
        self.at = list(self.weights.values())

    def outputs(self) -> Tensor:
        """With their graph."""
        found: Tensor = self.net(self.x)
        return found

    def gradient(self) -> Tensor:
        """With its graph."""
        loss = F.cross_entropy(self.outputs(), self.y)
        return joined(torch.autograd.grad(loss, self.at, create_graph=True))

    def hessian(self, gradient: Tensor, vector: Tensor) -> Tensor:
        """A product on a graph of the gradient."""
        return joined(torch.autograd.grad(gradient, self.at, vector, retain_graph=True))

    def forward(self, outputs: Tensor, vector: Tensor) -> Tensor:
        """A product with the Gauss-Newton matrix, forward and back."""
        parts = vector.split([p.numel() for p in self.at])
        moves = {n: v.view_as(p) for (n, p), v in zip(self.weights.items(), parts, strict=True)}

        def call(weights: dict[str, Tensor]) -> Tensor:
            found: Tensor = torch.func.functional_call(self.net, weights, (self.x,))
            return found

        fixed = {name: p.detach() for name, p in self.weights.items()}
        _, pushed = torch.func.jvp(call, (fixed,), (moves,))
        return self._back(outputs, pushed)

    def double(self, vector: Tensor) -> Tensor:
        """The same by differentiating J^T u by u."""
        outputs = self.outputs()
        u = torch.zeros_like(outputs, requires_grad=True)
        turned = joined(torch.autograd.grad(outputs, self.at, u, create_graph=True))
        (pushed,) = torch.autograd.grad(turned, u, vector, retain_graph=True)
        return self._back(outputs, pushed)

    def _back(self, outputs: Tensor, pushed: Tensor) -> Tensor:
        p = outputs.detach().softmax(1)
        curved = p * (pushed - (p * pushed).sum(1, keepdim=True)) / len(p)
        return joined(torch.autograd.grad(outputs, self.at, curved, retain_graph=True))


def row(name: str, repeats: int) -> list[str]:
    """Times of one net."""
    title, make, data = ROWS[name]
    torch.manual_seed(0)
    net, (x, y) = make().eval(), data()
    plain = Plain(net, x, y)

    def operator(**options: str) -> rt.curvature.CurvatureOperator:
        return rt.curvature_operator(
            net, "cross_entropy", (x, y), accumulate="float32", **options
        )  # fmt: skip

    ours, anew, GN = operator(), operator(engine="rebuilt"), operator(matrix="gauss_newton")
    kept, outputs = plain.gradient(), plain.outputs()
    vector, block = torch.randn(len(kept)), torch.randn(len(kept), 4)
    tasks: dict[str, Callable[[], object]] = {
        "ours": lambda: ours @ vector,
        "retained": lambda: plain.hessian(kept, vector),
        "anew": lambda: anew @ vector,
        "torch anew": lambda: plain.hessian(plain.gradient(), vector),
        "block": lambda: ours @ block,
        "set-up": operator,
        "gradient": plain.gradient,
        "GN": lambda: GN @ vector,
        "forward": lambda: plain.forward(outputs, vector),
        "double": lambda: plain.double(vector),
    }
    found = medians(tasks, repeats, time.process_time)
    pairs = ((tasks["ours"], tasks["retained"]), (tasks["GN"], tasks["forward"]))
    far = max(float((a() - b()).norm() / b().norm()) for a, b in pairs)
    ratios = [("retained", "ours"), ("torch anew", "anew"), ("block", "ours"), ("set-up", "ours"),
              ("gradient", "ours"), ("double", "GN"), ("forward", "GN")]  # fmt: skip
    shown = [f"{found[a] / found[b]:.2f}" for a, b in ratios]
    times = [f"{1e3 * found[side]:.3g}" for side in ("ours", "GN")]
    return [title, f"{len(kept):,}", times[0], *shown[:5], times[1], *shown[5:], f"{far:.0e}"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="*", default=list(ROWS), choices=[*ROWS, []])
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.backends.mha.set_fastpath_enabled(False)
    print(f"torch {torch.__version__}, 1 thread, float32; {time.strftime('%Y-%m-%d')}")
    print("|".join(("", *COLUMNS, "")) + "\n" + "|".join(("", *("---" for _ in COLUMNS), "")))
    with sdpa_kernel(SDPBackend.MATH):
        for name in arguments.rows:
            print("| " + " | ".join(row(name, arguments.repeats)) + " |", flush=True)
