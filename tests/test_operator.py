"""Curvature operators: every product against a matrix written out, whatever net, loss and data."""

import copy
import math
import warnings
from functools import partial
from pathlib import Path

import oracles
import pytest
import torch
import torch.nn.functional as F
from all_pairs import all_pairs
from fake_cuda import host_waits, pretended
from tolerances import HESSIAN, relative_error
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import resid_theory as rt
from resid_theory.curvature import accumulation, matvec_graphs, rounding
from resid_theory.curvature.empirical_risk import EmpiricalRisk
from resid_theory.curvature.first_look import check_batches
from resid_theory.identity import with_identity

M, K = 7, 2
SQUARE = {"square": oracles.square_loss, "mse": F.mse_loss, "cross_entropy": oracles.cross_entropy}
GIVEN = {"square": "square", "mse": F.mse_loss, "cross_entropy": "cross_entropy"}


# -- generated nets: products against the dense Hessian -------------------------------------------


class Attention(nn.Module):
    """Self-attention over two tokens, under a shortcut."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(2, 2, batch_first=True)
        self.head = nn.Linear(2, K)

    def forward(self, x):
        z = x.unflatten(1, (2, 2))
        z = z + self.attention(z, z, z, need_weights=False)[0]
        return self.head(torch.tanh(z)).mean(1)


def dense_net(act):
    return nn.Sequential(nn.Linear(4, 3), act(), nn.Linear(3, 3, bias=False), act(),
                         nn.Linear(3, K))  # fmt: skip


def conv_net(norm=nn.Identity, act=nn.Tanh, stride=1, groups=1):
    return nn.Sequential(
        nn.Unflatten(1, (2, 2, 1)), nn.Conv2d(2, 4, (2, 1), padding=(1, 0)), norm(4), act(),
        nn.Conv2d(4, 2, 1, stride=stride, groups=groups, bias=False), nn.Flatten(),
        nn.LazyLinear(K),
    )  # fmt: skip


def identity_net(kind):
    first, second = nn.Linear(4, 4), nn.Conv1d(2, 2, 3, padding=1)
    return nn.Sequential(
        with_identity(first, kind), nn.ReLU(), nn.Unflatten(1, (2, 2)),
        with_identity(second, kind), nn.Tanh(), nn.Flatten(), nn.Linear(4, K),
    )  # fmt: skip


NETS = {
    "linear": lambda: dense_net(nn.Identity),
    "tanh": lambda: dense_net(nn.Tanh),
    "relu": lambda: dense_net(nn.ReLU),
    "shortcut": lambda: nn.Sequential(rt.ShortcutNet(4, 2, 2, mid="tanh"), nn.Linear(4, K)),
    "conv": conv_net,
    "conv-strided-groups": lambda: conv_net(stride=(2, 1), groups=2, act=nn.ReLU),
    "batchnorm": lambda: conv_net(nn.BatchNorm2d),
    "batchnorm-relu": lambda: conv_net(nn.BatchNorm2d, act=lambda: nn.ReLU(inplace=True)),
    "attention": Attention,
    "dirac": lambda: identity_net("dirac"),
    "residual": lambda: identity_net("residual"),
}


def filled(kind, seed):
    """A net with random weights and statistics, and its data."""
    generator = torch.Generator().manual_seed(seed)
    net = NETS[kind]()
    net(torch.zeros(2, 4))
    net.train(seed % 2 == 0)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(0.7 * torch.randn(p.shape, generator=generator))
        for name, buffer in net.named_buffers():
            if "running" in name:
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
    x = torch.randn(M, 4, generator=generator)
    y = torch.softmax(torch.randn(M, K, generator=generator), dim=1)
    return net, x, y, generator


def exact_hessian(net, loss, parts, batchnorm):
    """Of the mean over ragged batches, by nested gradients in torch's own layers."""
    net.eval()
    for module in net.modules():
        if batchnorm == "batch" and isinstance(module, nn.BatchNorm2d):
            module.train()
    kept = {name: buffer.clone() for name, buffer in net.named_buffers()}
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        value = sum(len(x) * SQUARE[loss](net(x.clone()), y) for x, y in parts)
    value = value / sum(len(x) for x, _ in parts)
    exact = oracles.hessian_by_nested_gradients(value, list(net.parameters()))
    with torch.no_grad():
        for name, buffer in net.named_buffers():
            buffer.copy_(kept[name])
    return exact


SPLITS = ([7], [3, 4], [4, 2, 1], [2, 2, 3])
SWEEP = [
    pytest.param(kind, loss, batchnorm, seed, id=f"{kind}-{loss}-{batchnorm}-{seed}")
    for kind, loss, batchnorm, seed in all_pairs(
        NETS,
        GIVEN,
        ("eval", "batch"),
        range(4),
        unless=lambda kind, loss, batchnorm, seed: batchnorm == "batch" and "norm" not in kind,
    )
]


@pytest.mark.parametrize(("kind", "loss", "batchnorm", "seed"), SWEEP)
def test_products_equal_the_dense_hessian(kind, loss, batchnorm, seed, device):
    net, x, y, generator = filled(kind, seed)
    sizes = SPLITS[seed % 4] if batchnorm == "eval" else ([7], [3, 4])[seed % 2]
    parts = list(zip(x.split(sizes), y.split(sizes), strict=True))
    exact = exact_hessian(net, loss, parts, batchnorm)
    vectors = torch.randn(len(exact), 3, generator=generator)
    chunk = (None, 1, 2, 5)[seed % 4] if batchnorm == "eval" else None
    net, parts = net.to(device), [(x.to(device), y.to(device)) for x, y in parts]
    engine = ("retained", "rebuilt")[seed // 2 % 2]
    measured = rt.curvature_operator(
        net, GIVEN[loss], parts, batchnorm=batchnorm, chunk=chunk, engine=engine
    )
    assert measured.engine == engine
    assert relative_error((measured @ vectors).cpu(), exact @ vectors) <= HESSIAN


# -- Gauss-Newton and Fisher -----------------------------------------------------------------------


def gauss_newton(net, loss, x, y):
    return oracles.gauss_newton_by_jacobians(
        net(x.clone()), lambda z: SQUARE[loss](z, y), list(net.parameters())
    )


def empirical_fisher(net, loss, x, y):
    losses = [SQUARE[loss](net(x[i : i + 1].clone()), y[i : i + 1]) for i in range(len(x))]
    return oracles.fisher_by_samples(losses, list(net.parameters()))


@pytest.mark.parametrize(
    ("exact", "kind", "loss"), all_pairs([gauss_newton, empirical_fisher], NETS, GIVEN)
)
def test_gauss_newton_and_fisher_equal_their_definitions(exact, kind, loss, generator):
    chunk = 3 if exact is gauss_newton else 2
    net, x, y, _ = filled(kind, chunk)
    net.eval()
    expected = exact(net, loss, x, y)
    parts = list(zip(x.split([4, 3]), y.split([4, 3]), strict=True))
    engine = "rebuilt" if loss == "mse" else "retained"
    measured = rt.curvature_operator(net, GIVEN[loss], parts, matrix=exact.__name__, engine=engine,
                                     chunk=chunk)  # fmt: skip
    vectors = torch.randn(len(expected), 2, generator=generator)
    assert relative_error(measured @ vectors, expected @ vectors) <= HESSIAN
    assert relative_error(measured @ vectors[:, 1], expected @ vectors[:, 1]) <= HESSIAN


def test_gauss_newton_with_batch_statistics(generator):
    net, x, y, _ = filled("batchnorm", 5)
    net.train()
    exact = gauss_newton(net, "square", x, y)
    measured = rt.curvature_operator(
        net, "square", (x, y), matrix="gauss_newton", batchnorm="batch"
    )
    assert relative_error(measured.dense(), exact) <= HESSIAN


def test_gauss_newton_of_a_linear_loss_is_zero():
    net, x, y, _ = filled("tanh", 1)
    measured = rt.curvature_operator(
        net, lambda o, t: (o * t).sum(1).mean(), (x, y), matrix="gauss_newton"
    )
    assert not measured.dense().any()


def test_matrices_of_a_net_with_one_output_a_sample(generator):
    net = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1), nn.Flatten(0))
    x, y = torch.randn(M, 4, generator=generator), torch.randn(M, generator=generator)
    measured = rt.curvature_operator(net, "square", (x, y), matrix="empirical_fisher")
    assert relative_error(measured.dense(), empirical_fisher(net, "square", x, y)) <= HESSIAN


def cross_entropy(output, target):
    """A concave loss, whatever its name says."""
    return -F.cross_entropy(output, target)


@pytest.mark.parametrize(
    ("loss", "matrix", "least"),
    [
        ("square", "gauss_newton", 0.3), (nn.MSELoss(), "gauss_newton", 0.3),
        ("cross_entropy", "gauss_newton", 0.3), (F.cross_entropy, "gauss_newton", 0.3),
        (nn.BCEWithLogitsLoss(), "gauss_newton", 0.3), (cross_entropy, "gauss_newton", -math.inf),
        (nn.HuberLoss(), "gauss_newton", -math.inf), ("square", "hessian", -math.inf),
        (cross_entropy, "empirical_fisher", 0.3), ("square", "fisher", 0.3),
    ],
    ids=lambda given: getattr(given, "__name__", str(given)),
)  # fmt: skip
def test_matrices_that_are_known_to_have_no_negative_eigenvalue(loss, matrix, least):
    net, x, y, _ = filled("tanh", 1)
    measured = rt.curvature_operator(net, loss, (x, y), matrix=matrix, weight_decay=0.3)
    assert measured.lowest == least
    lowest = float(torch.linalg.eigvalsh(measured.dense())[0])
    assert lowest >= measured.lowest - HESSIAN
    if loss is cross_entropy and matrix == "gauss_newton":
        assert lowest < 0.29


# -- the operator ----------------------------------------------------------------------------------


def problem(kind="tanh", seed=0):
    net, x, y, generator = filled(kind, seed)
    parts = list(zip(x.split([3, 4]), y.split([3, 4]), strict=True))
    exact = exact_hessian(net, "square", parts, "eval")
    return net, x, y, exact, generator


def test_blocks_on_the_diagonal_have_no_negative_eigenvalue():
    net, x, y, _, _ = problem()
    A = rt.curvature_operator(net, "square", (x, y), matrix="gauss_newton", weight_decay=0.3)
    for rows, columns, lowest in (
        ("0.*", None, 0.3), (["2.*", "0.bias"], ["0.bias", "2.*"], 0.3),
        ("0.*", "2.*", -math.inf), ("0.*", "0.weight", -math.inf),
    ):  # fmt: skip
        block = A.block(rows, columns)
        assert block.lowest == block.T.lowest == lowest


@pytest.mark.parametrize("engine", ["retained", "rebuilt"])
def test_loss_and_gradient(engine):
    net, x, y, _, _ = problem()
    measured = rt.curvature_operator(net, "square", (x, y), engine=engine, chunk=2)
    value = oracles.square_loss(net(x), y)
    gradient = torch.cat([g.reshape(-1) for g in torch.autograd.grad(value, net.parameters())])
    assert measured.loss == pytest.approx(value.item(), rel=1e-14)
    assert relative_error(measured.gradient, gradient) <= 1e-13


def test_scipy_sees_the_same_matrix():
    net, x, y, exact, generator = problem()
    block = rt.curvature_operator(net, "square", (x, y)).block("0.*", "2.*")
    there = block.to_scipy()
    vectors = torch.randn(block.shape[0], 2, generator=generator).numpy()
    assert there.shape == block.shape == (15, 9)
    assert relative_error(
        torch.from_numpy(there.T @ vectors), exact[:15, 15:24].T @ torch.from_numpy(vectors)
    ) <= HESSIAN  # fmt: skip


BLOCKS = {
    "diagonal": ("0.*", None, range(15), range(15)),
    "cross": ("4.*", "0.weight", range(24, 32), range(12)),
    "several": (["2.weight", "4.bias"], "2.*", [*range(15, 24), 30, 31], range(15, 24)),
    "order": (["4.bias", "0.bias"], None, [12, 13, 14, 30, 31], [12, 13, 14, 30, 31]),
}


@pytest.mark.parametrize("matrix", ["hessian", "gauss_newton"])
@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("engine", ["retained", "rebuilt"])
def test_blocks(matrix, name, engine):
    net, x, y, exact, _ = problem()
    rows, columns, lower, across = BLOCKS[name]
    exact = gauss_newton(net, "square", x, y) if matrix == "gauss_newton" else exact
    whole = rt.curvature_operator(net, "square", (x, y), matrix=matrix, engine=engine)
    expected = exact[list(lower)][:, list(across)]
    assert relative_error(whole.block(rows, columns).dense(), expected) <= HESSIAN


def test_a_subset_is_a_block_of_the_whole():
    net, x, y, exact, _ = problem()
    by_name = rt.curvature_operator(net, "square", (x, y), parameters=["4.bias", "0.w*"])
    chosen = [net[0].weight, net[4].bias]
    by_tensor = rt.curvature_operator(net, "square", (x, y), parameters=chosen)
    places = [*range(12), 30, 31]
    assert by_name.names == by_tensor.names == ["0.weight", "4.bias"]
    assert relative_error(by_name.dense(), exact[places][:, places]) <= HESSIAN
    assert torch.equal(by_name.dense(), by_tensor.dense())


def test_a_parametrized_weight_goes_by_its_own_name():
    net, x, y, _ = filled("dirac", 0)
    measured = rt.curvature_operator(net, "square", (x, y), parameters="*.weight")
    assert "0.parametrizations.weight.original" in measured.names
    assert measured.block("0.weight").shape == (16, 16)


def test_images_are_made_into_inputs_chunk_by_chunk(generator):
    net, _, _, _ = filled("conv", 1)
    pixels = torch.randint(256, (M, 4), generator=generator, dtype=torch.uint8).view(M, 4, 1, 1)
    labels = torch.arange(M) % K
    images = rt.Images(pixels=pixels, labels=labels, mean=(0.5,), std=(0.2,))
    net = nn.Sequential(nn.Flatten(), net)
    x = (pixels.double() / 255 - 0.5) / 0.2
    exact = rt.curvature_operator(net, "cross_entropy", (x, labels)).dense()
    for engine in ("retained", "rebuilt"):
        measured = rt.curvature_operator(net, "cross_entropy", images, engine=engine, chunk=3)
        assert relative_error(measured.dense(), exact) <= HESSIAN


def test_a_pair_with_bytes_is_scaled_with_a_note(generator):
    pixels = torch.randint(256, (M, 1, 2, 2), generator=generator, dtype=torch.uint8)
    net, labels = nn.Sequential(nn.Flatten(), nn.Linear(4, K)), torch.arange(M) % K
    exact = rt.curvature_operator(net, "cross_entropy", (pixels.double() / 255, labels))
    found = rt.curvature_operator(net, "cross_entropy", (pixels, labels))
    assert relative_error(found.dense(), exact.dense()) <= HESSIAN and not exact.notes
    assert found.notes == ("x is of bytes, taken for pixels of images, which are divided by 255",)


def test_tuples_of_batches_and_regressions_are_data_too():
    net, x, y, exact, _ = problem()
    for data in (tuple(zip(x.split([3, 4]), y.split([3, 4]), strict=True)), rt.Regression(x, y)):
        assert relative_error(rt.curvature_operator(net, "square", data).dense(), exact) <= HESSIAN


def test_single_precision(generator):
    net, x, y, exact, _ = problem()
    vectors = torch.randn(len(exact), 2, generator=generator)
    net, x, y = net.float(), x.float(), y.float()
    double = rt.curvature_operator(net, "square", (x, y), chunk=2)
    single = rt.curvature_operator(net, "square", (x, y), chunk=2, accumulate="float32")
    assert (double.dtype, single.dtype) == (torch.float64, torch.float32)
    for measured in (double, single):
        # 1e3 roundings of single precision, none amplified
        assert relative_error((measured @ vectors).double(), exact @ vectors) <= 1e3 * 6e-8
    # far outside of single precision's range: the vectors are scaled by powers of two
    tiny = 2.0**-200
    assert torch.equal(double @ (tiny * vectors), tiny * (double @ vectors))


def confident(dtype, scale):
    """A net that is sure of its labels for a large scale, its data, and its Hessian in float64."""
    g = torch.Generator().manual_seed(1)
    net = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 3))
    x = torch.randn(40, 6, generator=g)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(0.7 * torch.randn(p.shape, generator=g))
        net[2].weight.mul_(scale)
        y = net(x).argmax(1)
    net, x = net.to(dtype), x.to(dtype)
    wide = copy.deepcopy(net).double()
    exact = rt.curvature_operator(wide, "cross_entropy", (x.double(), y)).dense()
    return net, (x, y), exact


@pytest.mark.parametrize("scale", [1, 40], ids=["unsure", "sure"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_error_of_a_low_precision_is_measured(dtype, scale):
    net, data, exact = confident(dtype, scale)
    operator = rt.curvature_operator(net, "cross_entropy", data)
    computed = operator.dense()
    shift = torch.linalg.eigvalsh((computed + computed.T) / 2) - torch.linalg.eigvalsh(exact)
    error = operator.error
    assert 0.01 * error.spectral < float(shift.abs().max()) <= error.spectral
    assert 0.01 * error.frobenius < float((computed - exact).norm()) <= error.frobenius
    assert abs(float((computed - exact).trace())) <= error.trace <= 20 * error.frobenius
    assert operator.block("0.weight").error == error


def test_one_layer_in_a_low_precision_has_an_error(generator):
    class Widened(nn.Module):
        def forward(self, x):
            return torch.tanh(x).double()

    net = nn.Sequential(nn.Linear(6, 8).float(), Widened(), nn.Linear(8, 3).double())
    x, y = torch.randn(30, 6, generator=generator), torch.randint(3, (30,), generator=generator)
    operator = rt.curvature_operator(net, "cross_entropy", (x.float(), y))
    exact = rt.hessian(copy.deepcopy(net).double(), "cross_entropy", (x.float().double(), y))
    gap = operator.dense() - exact
    assert 0 < float(gap.norm()) <= operator.error.frobenius


def test_an_error_of_few_samples_is_found():
    # Rounding of the one sample that is nearly undecided, in none of the largest eigenvectors.
    generator = torch.Generator().manual_seed(2)
    wide = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    with torch.no_grad():
        for p in wide.parameters():
            p.copy_(0.3 * torch.randn(p.shape, generator=generator))
    x, y = torch.randn(30, 6, generator=generator), torch.randint(3, (30,), generator=generator)
    optimizer = torch.optim.Adam(wide.parameters(), lr=0.1)
    for step in range(300):
        optimizer.zero_grad()
        nn.functional.cross_entropy(wide(x.double()), y).backward()
        optimizer.step()
        if step % 50 == 49:
            net = copy.deepcopy(wide).float()
            operator = rt.curvature_operator(net, "cross_entropy", (x, y))
            exact = rt.hessian(copy.deepcopy(net).double(), "cross_entropy", (x.double(), y))
            gap = operator.dense() - exact
            spectral = float(torch.linalg.matrix_norm((gap + gap.T) / 2, 2))
            assert spectral <= operator.error.spectral
            assert float(gap.norm()) <= operator.error.frobenius


def test_the_error_is_measured_on_samples_that_count():
    net, (x, y), _ = confident(torch.float32, 1)
    ignored = torch.full_like(y, -100)
    operator = rt.curvature_operator(net, "cross_entropy", [(x, ignored), (x, y)])
    assert operator.error == rt.curvature_operator(net, "cross_entropy", (x, y)).error
    assert operator.error.spectral > 0


class Stubborn(nn.Sequential):
    def forward(self, x):
        return super().forward(x.float())


def bars(A, B, usual):
    """Three times what four products show, by their lengths and one form; of the usual errors."""
    size, lengths = A.shape[0], []
    v = torch.randn(size, generator=torch.Generator().manual_seed(0))
    form = 0.0
    for step in range(4):  # twice towards the largest eigenvalues, and where most was wrong
        v = v / v.norm()
        largest = v.abs().max()
        found, right = (largest * (operator @ (v / largest)) for operator in (A, B))
        wrong = usual * found if usual else found - right
        if step == 0:
            first, form = wrong, 0.0 if usual else size * abs(float(v @ wrong))
        lengths.append(float(wrong.norm()))
        following = first if step >= 2 else found if usual else right
        v = following / following.abs().max()
    frobenius = max(max(lengths), size**0.5 * lengths[0])
    return [3 * max(lengths), 3 * frobenius, 3 * (form + 2**0.5 * frobenius)]


# Samples, weights of the net, and the samples that are compared: all where their graphs take less
# than 1 MiB, else one in 48, at least 2 and at most 16.
ERRORS = {"all": (40, (6, 5), 40), "two": (90, (600, 450), 2), "four": (192, (600, 450), 4),
          "still four": (239, (600, 450), 4),
          "most": (1000, (600, 450), 16), "in float32 only": (40, (6, 5), 40),
          "in float32 only, 10100 weights": (40, (101, 100), 40)}  # fmt: skip


@pytest.mark.parametrize(("name", "reduction"), [
    *((name, "sum") for name in ERRORS), ("all", "mean"), ("four", "mean"),
    ("in float32 only", "mean"),
])  # fmt: skip
def test_the_bars_of_an_error_are_multiples_of_what_products_show(name, reduction, generator):
    samples, (inputs, outputs), compared = ERRORS[name]
    x = torch.randn(samples, inputs, generator=generator).float()
    y = torch.randint(outputs, (samples,), generator=generator)
    kind = Stubborn if name.startswith("in float32 only") else nn.Sequential
    net = kind(nn.Linear(inputs, outputs, bias=False), nn.Softplus()).float()
    net[0].weight.data.copy_(torch.randn(outputs, inputs, generator=generator) / inputs**0.5)
    loss, few = nn.CrossEntropyLoss(reduction=reduction), torch.arange(compared) * samples
    few = few.div(compared, rounding_mode="floor")
    A, B = (rt.curvature_operator(n, loss, (x[few].to(n[0].weight), y[few]))
            for n in (net, nn.Sequential(*copy.deepcopy(net)).double()))  # fmt: skip
    eps = torch.finfo(torch.float32).eps
    weights = min(inputs * outputs, 10_000)
    expected = bars(A, B, eps * (10 + weights**0.5) if kind is Stubborn else 0.0)
    error = rt.curvature_operator(net, loss, (x, y)).error
    found = [error.spectral, error.frobenius, error.trace]
    unit = samples / compared if reduction == "sum" else 1.0
    # What is wrong is 1e-7 of products, in which sums of float64 differ by round-off.
    assert found == pytest.approx([unit * bar for bar in expected], rel=1e-6)


class Diagonal(nn.Module):
    """Half of the sum of h w², with another h in float32."""

    def __init__(self, exact, found):
        super().__init__()
        self.exact, self.found = exact, found
        self.weight = nn.Parameter(torch.randn(len(exact), dtype=torch.float32))

    def forward(self, x):
        h = self.found if self.weight.dtype == torch.float32 else self.exact
        return (h.to(x) * self.weight.square()).sum() / 2


@pytest.mark.parametrize("matrix", ["zero", "one wrong"])
def test_an_error_of_a_small_entry_is_found_by_the_fourth_product(matrix, monkeypatch):
    exact = torch.tensor([8.0, 4.0, 2.0, 1.0, 0.5, 0.0])
    found = exact.clone()
    found[-1] = 0.25
    if matrix == "zero":
        exact = found = 0 * exact
    loss, multiply, calls = (
        rt.Loss(lambda net, batch: net(batch), of="batch"),
        rounding._product,
        [],
    )
    monkeypatch.setattr(
        rounding, "_product", lambda graphs, v: calls.append(v) or multiply(graphs, v)
    )
    error = rt.curvature_operator(Diagonal(exact, found), loss, [torch.ones(1).float()]).error
    if matrix == "zero":
        assert (error.spectral, error.frobenius, error.trace) == (0, 0, 0) and len(calls) == 2
        return
    # The product with the last unit vector, exact to float32's rounding of the other entries.
    assert error.spectral == pytest.approx(3 * 0.25, rel=1e-5) and len(calls) == 2 * 4


def test_the_error_of_samples_one_by_one_is_that_of_their_mean(monkeypatch):
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x**2

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, slope):
            return 2 * slope * ctx.saved_tensors[0]

    class Squared(nn.Linear):
        def forward(self, x):
            return Once.apply(super().forward(x))

    torch.manual_seed(0)
    net, x, y = Squared(3, 2).float(), torch.randn(1, 3).float(), torch.tensor([1])
    errors = []
    for count in (2, 16):  # equal samples: the matrix of their mean is that of one
        data = x.expand(count, 3), y.expand(count)
        operator = rt.curvature_operator(net, "cross_entropy", data, matrix="empirical_fisher")
        errors.append(operator.error.frobenius)
    assert errors[0] == pytest.approx(errors[1], rel=1e-6) and errors[0] > 0
    operator = rt.curvature_operator(net, "cross_entropy", data, matrix="empirical_fisher")
    call, sizes = EmpiricalRisk.graph, []
    monkeypatch.setattr(
        EmpiricalRisk, "graph", lambda *given, **kw: sizes.append(given[3]) or call(*given, **kw)
    )
    assert operator.error is not None and sizes == [1] * 2 * 16


def test_a_net_in_float64_has_no_error():
    net, x, y, _, _ = problem()
    assert rt.curvature_operator(net, "square", (x, y)).error is None


@pytest.mark.parametrize("kind", ["tanh", "conv", "attention"])
def test_vectors_drawn_together_or_one_by_one(kind, monkeypatch):
    net, x, y, exact, generator = problem(kind)
    vectors = torch.randn(len(exact), 5, generator=generator)
    for small in (0, 1 << 40):
        monkeypatch.setattr("resid_theory.curvature.accumulation._SMALL", small)
        measured = rt.curvature_operator(net, "square", (x, y)) @ vectors
        assert relative_error(measured, exact @ vectors) <= HESSIAN


@pytest.mark.parametrize("power", [0, 20, -20, 21, -21, 300, -300])
def test_vectors_far_from_one_are_scaled_by_the_power_of_two_below_them(power, generator):
    scale = 2.0**power
    largest = torch.tensor([[1.0], [-1.99], [0.0]])
    given = scale * torch.cat([largest, largest * torch.tensor([0.5, -0.3])], dim=1)
    found, scales = matvec_graphs._near_one(given)
    far = abs(power) > 20
    assert scales == ([scale, scale, 1.0] if far else [1.0] * 3)
    assert found is given if not far else torch.equal(found, given / scale)
    if abs(power) == 21:
        narrow, _ = matvec_graphs._near_one(given.float())
        assert narrow.dtype == torch.float64


# Vectors, and for each pull how many it takes; one by one without an axis of vectors.
PULLS = {
    "one": (torch.ones(1), [None]), "some": (torch.ones(5), [5]), "most": (torch.ones(64), [64]),
    "more": (torch.ones(65), [64, None]), "all large": (torch.full((2,), 2.0**40), [2]),
    "of many sizes": (torch.tensor([1.0, 2.0**40]), [None] * 2),
}  # fmt: skip


@pytest.mark.parametrize("name", PULLS)
@pytest.mark.parametrize("engine", ["retained", "rebuilt"])
def test_small_graphs_are_differentiated_along_64_vectors_at_once(name, engine, monkeypatch):
    net, x, y, exact, _ = problem()
    (sizes, expected), pull, calls = PULLS[name], matvec_graphs.HessianGraph.pull, []

    def counted(self, vectors, rows, columns, batched):
        calls.append(len(vectors[0]) if batched else None)
        return pull(self, vectors, rows, columns, batched)

    A = rt.curvature_operator(net, "square", (x, y), engine=engine)
    v = torch.ones(len(exact), 1) * sizes
    monkeypatch.setattr(matvec_graphs.HessianGraph, "pull", counted)
    assert relative_error((A @ v) / sizes, exact @ v / sizes) <= HESSIAN
    assert calls == expected
    calls.clear()
    monkeypatch.setattr(accumulation, "_SMALL", A._sums._held_bytes(M))
    assert (A @ v).shape == v.shape and calls == expected
    calls.clear()
    monkeypatch.setattr(accumulation, "_SMALL", A._sums._held_bytes(M) - 1)
    assert (A @ v).shape == v.shape and calls == [None] * len(sizes)


@pytest.mark.parametrize("width", [0, 1])
def test_widths_of_blocks(width):
    net, x, y, exact, generator = problem()
    vectors = torch.randn(len(exact), width, generator=generator)
    measured = rt.curvature_operator(net, "square", (x, y)) @ vectors
    assert measured.shape == (len(exact), width)


def test_it_says_what_it_is():
    net, x, y, _, _ = problem()
    many, loss = (x.repeat(500, 1), y.repeat(500, 1)), nn.MSELoss(reduction="sum")
    A = rt.curvature_operator(net, loss, many, engine="rebuilt", chunk=1000, accumulate="float32")
    held = 3500 * (A.graph_bytes(2) - A.graph_bytes(1)) / 2  # a sample's twice, for a product
    assert held > 2**18 and str(A).splitlines() == [
        "Hessian, P = 32, sum over 3500 samples",
        "BatchNorm: eval; products in torch.float64, added in torch.float32; chunks of 1000",
        f"engine: rebuilt; retained graphs: {held / 2**20:.1f} MiB",
    ]
    assert repr(A) == "CurvatureOperator('hessian', shape=(32, 32), engine='rebuilt')"
    net = nn.Sequential(net, nn.BatchNorm1d(K)).float()
    A = rt.curvature_operator(net, "square", (x, y), matrix="gauss_newton", batchnorm="batch")
    assert str(A).splitlines() == [
        "generalized Gauss-Newton matrix, P = 36, mean over 7 samples",
        "BatchNorm: batch; products in torch.float32, added in torch.float64; chunks of whole "
        "batches",
        "engine: retained; retained graphs: 0.0 MiB",
        *(f"note: {note}" for note in A.notes),
    ]
    assert A.notes


@pytest.mark.parametrize("progress", [False, True])
@pytest.mark.parametrize(
    "options", [{}, {"engine": "rebuilt", "chunk": 2}], ids=["kept", "rebuilt"]
)
def test_bars_count_samples(options, progress, bars):
    net, x, y, exact, _ = problem()
    made = bars(accumulation)
    A = rt.curvature_operator(net, "square", [(x[:3], y[:3]), (x[3:], y[3:])], progress=progress,
                              **options)  # fmt: skip
    A @ exact[0]
    shown = {"disable": not progress, "unit": "sample", "leave": False, "done": M}
    assert [{**bar.options, "done": sum(bar.options["done"])} for bar in made] == [
        {"desc": "Gradient", **shown}, {"desc": "Product", "total": M, **shown}
    ]  # fmt: skip


# -- losses of (net, batch) ------------------------------------------------------------------------


def energy(net, batch):
    """Mean squared derivative of the net: there is no target."""
    points = batch["points"].clone().requires_grad_()
    (slope,) = torch.autograd.grad(net(points).sum(), points, create_graph=True)
    return slope.square().sum(1).mean()


ENERGY = rt.Loss(energy, of="batch")


@pytest.mark.parametrize("engine", ["retained", "rebuilt"])
@pytest.mark.parametrize("kind", ["tanh", "batchnorm"])
def test_a_closure_needs_no_targets_and_may_differentiate_any_layer(kind, engine):
    net, x, _, _ = filled(kind, 2)
    net.eval()
    exact = oracles.hessian_by_nested_gradients(energy(net, {"points": x}), list(net.parameters()))
    batches = [{"points": part} for part in x.split([4, 3])]
    measured = rt.curvature_operator(net, ENERGY, batches, engine=engine)
    assert relative_error(measured.dense(), exact) <= HESSIAN


# -- data that change ------------------------------------------------------------------------------


def shuffled(x, y):
    return DataLoader(TensorDataset(x, y), batch_size=3, shuffle=True)


@pytest.mark.parametrize("engine", ["retained", "rebuilt"])
def test_a_shuffling_loader_is_named_where_it_is_harmless(engine, generator):
    net, x, y, exact, _ = problem()
    measured = rt.curvature_operator(net, "square", shuffled(x, y), engine=engine)
    vectors = torch.randn(len(exact), 2, generator=generator)
    torch.rand(1)  # the loader's order follows torch's generator
    if engine == "rebuilt":
        with pytest.warns(UserWarning, match="^data: DataLoader shuffles between passes"):
            measured @ vectors
    assert relative_error(measured @ vectors, exact @ vectors) <= HESSIAN
    assert ("shuffles" in measured.describe()) == (engine == "rebuilt")


class Augmented:
    """Adds noise, other in every pass."""

    def __init__(self, x, y):
        self.x_, self.y_ = x, y

    def __iter__(self):
        yield self.x_ + torch.randn_like(self.x_), self.y_


@pytest.mark.parametrize(
    ("data", "batchnorm", "message"),
    [
        (shuffled, "batch", "^data: DataLoader shuffles between passes, and here"),
        (Augmented, "eval", "^data: Augmented gives other samples in every pass"),
    ],
    ids=["shuffled", "augmented"],
)
def test_data_that_change_where_it_matters_are_refused(data, batchnorm, message):
    net, x, y, _ = filled("batchnorm", 0)
    given = {"engine": "rebuilt", "batchnorm": batchnorm}
    measured = rt.curvature_operator(net, "square", data(x, y), **given)
    torch.rand(1)
    with pytest.raises(ValueError, match=message):
        measured @ measured.gradient


def test_data_may_change_after_the_graphs_are_kept_only():
    net, x, y, exact, _ = problem()
    parts = [[x.clone(), y.clone()]]
    rebuilt = rt.curvature_operator(net, "square", parts, engine="rebuilt")
    parts[0][0][0, 0] += 1.0
    with pytest.raises(ValueError, match="^data: list gives other samples"):
        rebuilt @ exact[0]


def test_a_parameter_without_entries_has_a_block():
    net, x, y, exact, _ = problem()
    net.register_parameter("none", nn.Parameter(torch.empty(0, 3)))
    measured = rt.curvature_operator(net, "square", (x, y))
    assert relative_error(measured.dense(), exact) <= HESSIAN
    block = measured.block("0.weight", "none")
    assert torch.equal(block @ torch.ones(0, 2), torch.zeros(block.shape[0], 2))


class View(nn.Module):
    def forward(self, z):
        return z.view(len(z), -1)


@pytest.mark.parametrize("last", [nn.Flatten(), View()], ids=["any", "contiguous"])
def test_images_of_any_order_in_memory(last, generator):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Tanh(), last, nn.Linear(12, K)).float()
    data = torch.randn(M, 2, 4, 4, generator=generator).float(), torch.ones(M, K).float()
    v = torch.ones(sum(p.numel() for p in net.parameters()))
    exact = rt.curvature_operator(copy.deepcopy(net).double(), "square", data) @ v
    assert relative_error(rt.curvature_operator(net, "square", data) @ v, exact) <= 1e-4


# -- memory ----------------------------------------------------------------------------------------


def lacking(monkeypatch, most, probed=float("inf")):
    """Graphs of more samples than these run out of memory, and those that are measured."""
    build, tried = EmpiricalRisk.graph, []

    def graph(self, batch, start, count, *, weigh=False, **options):
        tried.append(count)
        if count > (probed if weigh else most):
            raise torch.OutOfMemoryError("out of memory")
        return build(self, batch, start, count, weigh=weigh, **options)

    monkeypatch.setattr(EmpiricalRisk, "graph", graph)
    return tried


def test_normed_weights_do_not_count_for_every_sample(generator):
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(500, 500))
    net = nn.Sequential(normed, nn.Tanh(), nn.Linear(500, 1))
    data = torch.randn(8, 500, generator=generator), torch.randn(8, 1, generator=generator)
    vector = 500 * 8  # bytes; a sample holds a few of these, the normed weights 500
    assert rt.curvature_operator(net, "square", data).chunk > 2**28 / (20 * vector)


def test_chunks_are_halved_when_memory_runs_out(monkeypatch, generator):
    net, x, y, exact, _ = problem()
    lacking(monkeypatch, 2)
    vectors = torch.randn(len(exact), 2, generator=generator)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        measured = rt.curvature_operator(net, "square", (x, y))
        assert relative_error(measured @ vectors, exact @ vectors) <= HESSIAN
    texts = [str(warning.message) for warning in caught]
    assert texts[0].startswith("engine: out of memory with retained graphs")
    assert texts[1] == "chunk: out of memory with 7 samples; going on with 3"
    assert texts[2] == "chunk: out of memory with 3 samples; going on with 1"
    assert [Path(warning.filename).name for warning in caught[1:]] == ["operator.py"] * 2
    assert (measured.engine, measured.chunk) == ("rebuilt", 1)


def test_lack_of_memory_in_net_or_loss_is_called_so():
    net, x, y, _, _ = problem()

    def greedy(*_given):
        raise torch.OutOfMemoryError("out of memory")

    for loss, data in ((greedy, (x, y)), (rt.Loss(greedy, of="batch"), [{"points": x}])):
        with pytest.raises(torch.OutOfMemoryError):
            rt.curvature_operator(net, loss, data)
    net.register_forward_hook(greedy)
    with pytest.raises(torch.OutOfMemoryError):
        rt.curvature_operator(net, "square", (x, y))


def test_a_look_at_three_samples_gives_way_to_none(monkeypatch):
    net, x, y, _, _ = problem()
    call = EmpiricalRisk.run

    def tight(self, batch):
        if batch.size > 2:
            raise torch.OutOfMemoryError("out of memory")
        return call(self, batch)

    monkeypatch.setattr(EmpiricalRisk, "run", tight)
    with pytest.raises(torch.OutOfMemoryError):
        rt.curvature_operator(net, "square", (x, y))


def test_memory_is_measured_on_as_many_samples_as_fit(monkeypatch):
    net, x, y, exact, _ = problem()
    whole = rt.curvature_operator(net, "square", (x, y))
    lacking(monkeypatch, 1, probed=1)
    measured = rt.curvature_operator(net, "square", (x, y), chunk=1)
    assert relative_error(measured.dense(), exact) <= HESSIAN
    assert measured.graph_bytes(1) > whole.graph_bytes(1) / 2
    tried = lacking(monkeypatch, 1, probed=0)
    with pytest.raises(torch.OutOfMemoryError):
        rt.curvature_operator(net, "square", (x, y), chunk=1)
    assert tried == [4, 2, 1]


def test_batches_that_cannot_be_split_and_do_not_fit_are_refused(monkeypatch):
    net, x, y, _, _ = problem("batchnorm")
    lacking(monkeypatch, 6)
    with pytest.raises(MemoryError, match="^chunk: out of memory with a batch of 7 samples, which"):
        rt.curvature_operator(net, "square", (x, y), batchnorm="batch", engine="rebuilt")


@pytest.mark.parametrize("engine", ["auto", "retained", "rebuilt"])
@pytest.mark.parametrize("step", ["add_value_and_gradient", "add_product"])
def test_errors_of_steps_are_no_lack_of_memory(step, engine, monkeypatch):
    net, x, y, exact, _ = problem()
    measured = rt.curvature_operator(net, "square", (x, y), engine=engine)

    def fail(*_given, **_named):
        raise RuntimeError("something else")

    monkeypatch.setattr(matvec_graphs.HessianGraph, step, fail)
    with pytest.raises(RuntimeError, match="^something else"):
        if step == "add_product":
            measured @ exact[0]
        else:
            rt.curvature_operator(net, "square", (x, y), engine=engine)


def test_a_look_at_many_samples_gives_way_to_one_at_few(monkeypatch, generator):
    net, _, _, _ = filled("tanh", 0)
    x, y = torch.randn(40, 4, generator=generator), torch.randn(40, K, generator=generator)
    call, sizes = EmpiricalRisk.run, []

    def tight(self, batch):
        sizes.append(batch.size)
        if len(sizes) < 4 and batch.size > 4:
            raise torch.OutOfMemoryError("out of memory")
        return call(self, batch)

    monkeypatch.setattr(EmpiricalRisk, "run", tight)
    measured = rt.curvature_operator(net, lambda o, t: F.mse_loss(o, t), (x, y))
    exact = rt.curvature_operator(net, F.mse_loss, (x, y))
    assert sizes[:4] == [2, 16, 2, 3]
    assert relative_error(measured.dense(), exact.dense()) <= HESSIAN


def test_memory_that_does_not_suffice_for_one_sample(monkeypatch):
    net, x, y, _, _ = problem()
    lacking(monkeypatch, 0)
    with pytest.raises(MemoryError, match="^chunk: out of memory with a single"):
        rt.curvature_operator(net, "square", (x, y), engine="rebuilt", chunk=1)
    with pytest.raises(MemoryError, match="^engine: 'retained' needs about"):
        rt.curvature_operator(net, "square", (x, y), engine="retained")


def test_kept_graphs_give_way_when_a_product_runs_out(monkeypatch, generator):
    net, x, y, exact, _ = problem()
    measured = rt.curvature_operator(net, "square", (x, y))
    assert measured.engine == "retained"
    graph = type(measured._sums._graphs[0][1])
    pull, calls = graph.pull, []

    def once(self, *given):
        calls.append(given)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("out of memory")
        return pull(self, *given)

    monkeypatch.setattr(graph, "pull", once)
    with pytest.warns(UserWarning, match="^engine: out of memory with retained") as caught:
        product = measured @ exact[0]
    assert Path(caught[0].filename).name == "operator.py"
    assert measured.engine == "rebuilt"
    assert relative_error(product, exact @ exact[0]) <= HESSIAN


def test_bytes_of_graphs_grow_with_samples_and_with_chunks():
    """Of samples and of chunks, one more of each for a product, and one more chunk."""
    net, x, y, _, _ = problem()
    one, two = (
        rt.curvature_operator(net, "square", (x, y), chunk=chunk).graph_bytes for chunk in (1, 2)
    )
    # Of n samples one by one: (n + 1) a + (n + 2) b.
    both = one(2) - one(1)
    b = one(1) - 2 * both
    a = both - b
    assert a > 0 and b > 0
    assert two(1) == 2 * a + 3 * b
    assert [two(n) for n in (2, 5, 7)] == [(n + 2) * a + (n // 2 + 2) * b for n in (2, 5, 7)]


def graphs_of(monkeypatch, *given, **options):
    """The graphs that an operator makes before its first product, and whether bytes are counted."""
    build, made = EmpiricalRisk.graph, []

    def graph(self, batch, start, count, *, weigh=False, **options):
        made.append((start, min(count, batch.size - start), weigh))
        return build(self, batch, start, count, weigh=weigh, **options)

    with monkeypatch.context() as patched:
        patched.setattr(EmpiricalRisk, "graph", graph)
        rt.curvature_operator(*given, **options)
    return made


def test_graphs_that_are_measured_before_those_that_are_kept(monkeypatch, generator):
    """Of four samples and two; of 32 where the matrix is zero; whole where nothing is split."""
    net, x, y, _, _ = problem()
    x, y = torch.randn(40, 4, generator=generator), torch.randn(40, K, generator=generator)
    found = partial(graphs_of, monkeypatch)
    assert found(net, "square", (x, y)) == [(0, 4, True), (0, 2, True), (0, 40, False)]
    assert found(net, "square", (x[:3], y[:3])) == [(0, 3, True), (0, 3, False)]
    parts = [(0, 30, False), (30, 10, False)]
    assert found(net, "square", (x, y), chunk=30)[2:] == parts
    assert found(net, "square", (x, y), chunk=30, engine="rebuilt")[2:] == parts

    def linear(output, target):
        return (output * target).sum(1).mean()

    more = [(0, 4, True), (0, 32, True), (0, 16, True), (0, 40, False)]
    assert found(nn.Linear(4, K), linear, (x, y)) == more
    few = [(0, 4, True), (0, 5, True), (0, 2, True), (0, 5, False)]
    assert found(nn.Linear(4, K), linear, (x[:5], y[:5])) == few
    four = [(0, 4, True), (0, 2, True), (0, 4, False)]
    assert found(nn.Linear(4, K), linear, (x[:4], y[:4])) == four
    whole, norms = [(0, 40, True), (0, 40, False)], nn.Sequential(nn.BatchNorm1d(4), net)
    assert found(norms, "square", (x, y), batchnorm="batch") == whole


@pytest.mark.parametrize(("measured", "most"), [(True, 16), (False, 3)])
def test_samples_that_are_looked_at_first(measured, most, monkeypatch, generator):
    """Two of them and more, whose outputs agree; then graphs are measured, and made."""
    net, _, _, _ = filled("tanh", 0)
    x, y = torch.randn(40, 4, generator=generator), torch.randn(40, K, generator=generator)
    call, sizes = EmpiricalRisk.run, []
    monkeypatch.setattr(
        EmpiricalRisk, "run", lambda self, batch: sizes.append(batch.size) or call(self, batch)
    )
    loss = (lambda o, t: (o - t).square().mean()) if measured else "square"
    A = rt.curvature_operator(net, loss, (x, y))
    assert sizes == [2, most, 4, 2, 40, 2]
    assert [graph.given for _, graph in A._sums._graphs] == [[]]


def test_two_samples_of_each_other_kind_are_checked(monkeypatch, generator):
    net = dense_net(nn.Tanh)
    shapes = (40,), (30,), (5, 3), (6, 3), (1, 2)
    parts = [(torch.randn(*shape, 4, generator=generator), torch.zeros(*shape, K))
             for shape in shapes]  # fmt: skip
    risk, call, given = EmpiricalRisk(net, "square", parts), EmpiricalRisk.run, []
    batches = list(risk.first_pass())
    monkeypatch.setattr(
        EmpiricalRisk, "run", lambda self, batch: given.append(batch.pair[0]) or call(self, batch)
    )
    check_batches(risk, batches)
    assert [x.shape for x in given] == [(2, 3, 4), (1, 2, 4)]
    assert torch.equal(given[0], parts[2][0][[-1, 0]]) and torch.equal(given[1], parts[4][0])


class Root(nn.Module):
    """A sum of roots, whose slope at zero is infinite."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, 0.0]))

    def forward(self, x):
        return self.weight.sqrt().sum() + 0 * x.sum()


def test_a_gradient_that_is_infinite_in_one_entry_is_refused():
    loss = rt.Loss(lambda net, batch: net(batch), of="batch")
    with pytest.raises(ValueError, match="^net: its loss or gradient is not finite on these data"):
        rt.curvature_operator(Root(), loss, [torch.ones(1)])


def test_graphs_of_a_mebibyte_are_small():
    net, x, y, _, _ = problem()
    sums = rt.curvature_operator(net, "square", (x, y))._sums
    beside = sums._held_bytes(0)
    count = (2**20 - beside) // sums.sample_bytes
    assert beside + count * sums.sample_bytes <= 2**20 < beside + (count + 1) * sums.sample_bytes
    assert (sums._together(count), sums._together(count + 1)) == (64, 1)


def test_graphs_that_hold_less_than_a_byte_of_a_sample():
    """Of a weight in float32 alone, whose loss is the same for all samples."""
    net, loss = nn.Linear(1, 1, bias=False).float(), rt.Loss(
        lambda net, batch: net.weight.pow(4).sum(), of="batch")  # fmt: skip
    A = rt.curvature_operator(net, loss, [torch.ones(10_000)])
    assert A.dense().item() == pytest.approx(12 * net.weight.item() ** 2, rel=1e-6)
    assert A.error.spectral < 1e-5 and A.graph_bytes(10_000) == 20_000


@pytest.mark.parametrize(("free", "together"), [(8, 1), (24, 2), (512, 63), (528, 64)])
def test_vectors_share_an_eighth_of_a_gpu(free, together, monkeypatch):
    with pretended():
        net = nn.Linear(4, 3).to("cuda")
        data = torch.ones(8, 4, device="cuda"), torch.zeros(8, 3, device="cuda")
        held = rt.curvature_operator(net, "square", data)._sums._held_bytes(8)
        monkeypatch.setattr(accumulation, "available_bytes", lambda _: free * held - 2)
        sums = rt.curvature_operator(net, "square", data)._sums
        assert sums._together(8) == together  # one byte less than one more would take


@pytest.mark.parametrize("chunk", [None, 2])
def test_the_engine_follows_the_memory(chunk, monkeypatch):
    net, x, y, exact, _ = problem()
    needed = rt.curvature_operator(net, "square", (x, y), chunk=chunk).graph_bytes(M)

    def engine(**options):
        return rt.curvature_operator(net, "square", (x, y), chunk=chunk, **options).engine

    limits = needed, needed - 1
    assert [engine(memory_limit=limit) for limit in limits] == ["retained", "rebuilt"]
    for limit, expected in zip(limits, ["retained", "rebuilt"], strict=True):
        monkeypatch.setattr(accumulation, "available_bytes", lambda _, limit=limit: 2 * limit)
        assert engine() == expected  # half of what is free
    with pytest.raises(MemoryError) as caught:
        rt.curvature_operator(net, "square", (x, y), memory_limit=1, engine="retained")
    assert str(caught.value) == (
        f"engine: 'retained' needs about {needed / 2**20:.1f} MiB, 0.0 MiB may be used; use 'auto' "
        "or 'rebuilt', which hold one chunk at a time"
    )


# -- refusals --------------------------------------------------------------------------------------


def generator_of_batches(x, y):
    yield x, y


class Crossed(nn.Linear):
    """Subtracts the mean over samples, so that every output depends on all."""

    def forward(self, x):
        z = super().forward(x)
        return z - z.mean(0)


class Rounded(nn.Linear):
    def forward(self, x):
        return super().forward(x).round().long()


class Nothing(nn.Linear):
    def forward(self, x):
        return super().forward(x)[:, :0]


class Two(nn.Linear):
    def forward(self, x):
        z = super().forward(x)
        return z, 2 * z


PAIRED = rt.Loss(
    lambda output, target: oracles.square_loss(output[0], target), likelihood=rt.losses.Gaussian
)
WEIGHED = rt.Data.of((oracles.noise(6, 4), oracles.noise(6, 2)), sample_weight=[1, 2, 3, 1, 2, 3])
REFUSED = {
    "integers": (
        {"net": Rounded(4, K), "loss": lambda o, t: (o - t).abs().mean()},
        "^net: gives Tensor without floating-point tensors, needs at least one floating-point num",
    ),
    "nothing": (
        {"net": Nothing(4, K), "loss": lambda o, t: (o.sum(1) - t.sum(1)).square().mean()},
        r"^net: gives Tensor of shape \(2, 0\), needs at least one floating-point number$",
    ),
    "two outputs": (
        {"net": Two(4, K), "loss": PAIRED, "matrix": "fisher"},
        "^net: gives 2 tensors, a Fisher matrix needs one",
    ),
    "closure-key": (
        {
            "loss": rt.Loss(lambda net, batch: batch["absent"], of="batch"),
            "data": [{"points": torch.ones(2, 4)}],
        },
        r"^loss: of \(net, batch\), fails on a batch that is dict: KeyError",
    ),
    "once": ({"data": "once"}, "^data: got generator, which can be read only once, but every"),
    "matrix": ({"matrix": "hesian"}, "^matrix: unknown name 'hesian'; did you mean 'hessian'"),
    "engine": ({"engine": "kept"}, "^engine: unknown name 'kept'"),
    "accumulate": ({"accumulate": "float16"}, "^accumulate: unknown name 'float16'"),
    "batchnorm": ({"batchnorm": "train"}, "^batchnorm: unknown name 'train'"),
    "chunk": ({"chunk": 0}, "^chunk: got 0, needs at least 1"),
    "name": ({"parameters": "0.weigth"}, "^parameters: .* '0.weigth'; the nearest is '0.weight'"),
    "module": ({"parameters": "0"}, r"^parameters: '0' is a module; .* are '0\.\*'$"),
    "tensor": ({"parameters": [torch.ones(2)]}, r"^parameters: a tensor of shape \(2,\) is no"),
    "number": ({"parameters": [3]}, "^parameters: got int, needs a name or a parameter"),
    "none": ({"parameters": []}, r"^parameters: got \[\], needs names"),
    "loss": ({"loss": "squar"}, "^loss: unknown name 'squar'; did you mean 'square'"),
    "closure": (
        {"loss": ENERGY, "matrix": "empirical_fisher", "data": [{"points": torch.ones(2, 4)}]},
        r"^matrix: 'empirical_fisher' needs the net's outputs, which a loss of \(net, batch\) h",
    ),
    "closure-chunk": (
        {"loss": ENERGY, "chunk": 1, "data": [{"points": torch.ones(2, 4)}]},
        r"^chunk: got 1, but a batch of 2 samples cannot be split \(batchnorm='batch', or a loss "
        r"of \(net, batch\)\); leave it out, or make the data's own batches smaller$",
    ),
    "closure-batch": (
        {"loss": ENERGY, "data": ["points"]},
        "^data: got a batch that is str without a tensor",
    ),
    "process_group": (
        {"process_group": "world"},
        "^process_group: got 'world', but torch.distributed is not initialized",
    ),
    "mixing": (
        {"net": nn.Sequential(Crossed(4, 2)), "matrix": "empirical_fisher"},
        "^matrix: 'empirical_fisher' needs a net and a loss that treat every sample alone",
    ),
    "infinite": (
        {"loss": lambda o, t: (o * torch.inf).mean()},
        "^loss: is not a number on these data",
    ),
    "mixed-statistics": (
        {
            "net": nn.Sequential(nn.BatchNorm1d(4)),
            "matrix": "empirical_fisher",
            "batchnorm": "batch",
        },
        "^matrix: 'empirical_fisher' needs a gradient for every sample",
    ),
    "mixing weights": (
        {"net": nn.Sequential(Crossed(4, 2)), "data": WEIGHED},
        "^sample_weight: needs a net and a loss that treat every sample alone; net: its samples",
    ),
    "batchnorm and weights": (
        {
            "net": nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 2)),
            "data": WEIGHED,
            "batchnorm": "batch",
        },
        "^sample_weight: .* alone; with batchnorm='batch' samples share statistics$",
    ),
    "one sample": (
        {"data": (torch.zeros(1, 5), torch.zeros(1, 2))},
        r"^data x: the net does not take samples of shape \(5,\)",
    ),
    "not-a-net": ({"net": "resnet"}, "^net: got str, needs a torch.nn.Module"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name):
    change, message = REFUSED[name]
    net, x, y, _, _ = problem()
    given = {"net": net, "loss": "square", "data": (x, y), **change}
    if given["data"] == "once":
        given["data"] = generator_of_batches(x, y)
    if isinstance(given["net"], nn.Module):
        given["net"].double()
    with pytest.raises(ValueError, match=message):
        rt.curvature_operator(given.pop("net"), given.pop("loss"), given.pop("data"), **given)


def test_vectors_of_another_length_are_refused():
    net, x, y, _, _ = problem()
    measured = rt.curvature_operator(net, "square", (x, y))
    with pytest.raises(ValueError, match=r"^V: got shape \(31,\) for an operator of shape"):
        measured @ torch.ones(31)


# -- on a GPU --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("device", "size"), [("cpu", 1 << 28), ("cuda", 1 << 30)])
def test_a_graph_holds_what_fits_a_processors_caches_or_an_eighth_of_a_gpu(
    device, size, monkeypatch
):
    monkeypatch.setattr(accumulation, "available_bytes", lambda _: 1 << 33)
    with pretended():
        net = nn.Linear(4, 3).to(device)
        data = torch.ones(8, 4, device=device), torch.zeros(8, 3, device=device)
        operator = rt.curvature_operator(net, "square", data)
    assert operator.chunk == size // operator._sums.sample_bytes > 1


def test_vectors_are_looked_at_in_one_transfer():
    with pretended():
        vectors = torch.tensor([[1.0, -3.0], [0.5, 0.0], [0.0, 0.0]], device="cuda")
        with host_waits() as found:
            given, scales = matvec_graphs._near_one(vectors)
    assert given is vectors and scales == [1.0, 1.0, 1.0]
    assert found == ["tolist"]
