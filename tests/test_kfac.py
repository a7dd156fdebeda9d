"""K-FAC: exact where theory says so, its factors against loops, and its algebra against dense."""

import copy

import oracles
import pytest
import torch
import torch.nn.functional as F
from oracles import noise
from tolerances import HESSIAN, assert_same, relative_error
from torch import nn
from torch.nn.utils import parametrizations, prune

import resid_theory as rt
from resid_theory.curvature.kronecker_operator import KroneckerBlock, KroneckerOperator
from resid_theory.identity import with_identity

M = 5
WEIGHTS = torch.tensor([1.0, 0.0, 2.5, 1.0, 0.5])


def seeded(*layers):
    net = nn.Sequential(*layers).double()
    for number, p in enumerate(net.parameters()):
        p.data.copy_(noise(*p.shape, seed=number))
    return net


class MeanOverPlaces(nn.Module):
    """Channels behind the samples, or with ``axis`` the axis of the places."""

    def __init__(self, axis=None):
        super().__init__()
        self.axis = axis

    def forward(self, z):
        return z.flatten(2).mean(2) if self.axis is None else z.mean(self.axis)


def conv(kind, *shape, **options):
    return seeded(kind(*shape, **options), MeanOverPlaces(), nn.Linear(shape[1], 2))


def layers_of(net):
    return [f"{n}.*" if n else "*" for n, m in net.named_modules() if list(m.parameters(False))]


def in_batches(x, y):
    rows = zip(*(part.split([2, 3]) for part in (x, y, WEIGHTS)), strict=True)
    return rt.Data.of(list(rows), sample_weight=True)


def mean_over(samples, matrix, x):
    parts = [w * matrix(x[i : i + 1], i) for i, w in enumerate(WEIGHTS[:samples]) if w]
    return sum(parts) / WEIGHTS[:samples].sum()


# Nets, inputs, the shape of their targets, and the setting in which K-FAC is exact.
LINEAR = {
    "deep": (lambda: seeded(nn.Linear(3, 4), nn.Linear(4, 2, bias=False), nn.Linear(2, 2)),
             (M, 3), (M, 2), ("expand", "reduce")),
    "bare": (lambda: seeded(nn.Linear(3, 2))[0], (M, 3), (M, 2), ("expand", "reduce")),
    "outputs at each token": (lambda: seeded(nn.Linear(3, 4), nn.Linear(4, 2)),
                              (M, 3, 3), (M, 3, 2), ("expand",)),
    "mean over tokens": (lambda: seeded(nn.Linear(3, 4), nn.Linear(4, 4), MeanOverPlaces(1),
                                        nn.Linear(4, 2)), (M, 3, 3), (M, 2), ("reduce",)),
    "conv1d": (lambda: conv(nn.Conv1d, 2, 3, 3, stride=2, padding=1, dilation=2),
               (M, 2, 7), (M, 2), ("reduce",)),
    "conv2d": (lambda: conv(nn.Conv2d, 2, 3, (3, 2), padding=1, padding_mode="circular",
                            bias=False), (M, 2, 4, 5), (M, 2), ("reduce",)),
}  # fmt: skip


@pytest.mark.parametrize("name", LINEAR)
def test_the_blocks_of_linear_nets_are_exact(name):
    make, inputs, targets, exact_in = LINEAR[name]
    net, x, y = make(), noise(*inputs), noise(*targets, seed=1)

    def gauss_newton(one, i):
        return oracles.gauss_newton_by_jacobians(
            net(one), lambda z: oracles.square_loss(z, y[i : i + 1]), list(net.parameters())
        )

    right = mean_over(M, gauss_newton, x)
    for sharing in ("expand", "reduce"):
        found = rt.curvature.kfac(net, "square", in_batches(x, y), weight_sharing=sharing, chunk=2)
        assert not found.not_covered and list(found.row_shapes) == list(
            dict(net.named_parameters())
        )
        gaps, start = [], 0
        for pattern in layers_of(net):
            block = found.block(pattern).dense()
            rows = slice(start, start := start + len(block))
            gaps.append(relative_error(block, right[rows, rows]))
        if sharing in exact_in:
            assert max(gaps) <= HESSIAN
        else:
            assert max(gaps) > 0.01


@pytest.mark.parametrize("matrix", ["fisher", "empirical_fisher"])
@pytest.mark.parametrize(
    "loss", ["cross_entropy", nn.BCEWithLogitsLoss(), nn.MSELoss()],
    ids=["labels", "yes-no", "numbers"],
)  # fmt: skip
def test_the_blocks_of_one_sample_are_exact(matrix, loss):
    residual = with_identity(nn.Linear(4, 4), "residual")  # its bias comes before its weight
    net = seeded(nn.Linear(3, 4), nn.Tanh(), residual, nn.Tanh(), nn.Linear(4, 3))
    x, y = noise(1, 3), torch.tensor([2])
    y = y if loss == "cross_entropy" else torch.tensor([[1.0, 0.0, 1.0]]).double()
    found = rt.curvature.kfac(net, loss, (x, y), matrix=matrix)
    whole = rt.curvature_operator(net, loss, (x, y), matrix=matrix)
    assert found.eigenvalues.smallest >= 0.0  # of factors of rank one
    for pattern in ("0.*", "2.*", "4.*"):
        exact = whole.block(pattern).dense()
        assert relative_error(found.block(pattern).dense(), exact) <= HESSIAN


def factors(net, x, y, sharing, valid, layers):
    """Of a net of linear layers with tanh and mixed tokens, prediction by prediction and place."""
    sums = {name: [0.0, 0.0] for name in layers}
    for i in range(M):
        kept = {}
        hooks = [
            getattr(net, name).register_forward_hook(
                lambda m, a, z, name=name, kept=kept: kept.__setitem__(name, (a[0], z)))
            for name in layers
        ]  # fmt: skip
        log = F.log_softmax(net(x[i : i + 1]), -1)[0]
        for hook in hooks:
            hook.remove()
        for name in layers:
            a, z = kept[name]
            a = torch.cat([a[0].detach(), torch.ones(len(a[0]), 1)], 1)
            rows = [row for row, counts in zip(a, valid[i], strict=True) if counts]
            if sharing == "reduce":
                rows = [sum(rows) / len(rows)] * len(rows)
            sums[name][0] += WEIGHTS[i] * sum(torch.outer(row, row) for row in rows)
            for t in range(len(log)):
                for k in range(log.shape[-1]):
                    (g,) = torch.autograd.grad(log[t, k], z, retain_graph=True)
                    rows = [g[0].sum(0)] if sharing == "reduce" else list(g[0])
                    moment = sum(torch.outer(row, row) for row in rows)
                    share = WEIGHTS[i] * valid[i, t] * log[t, k].detach().exp()
                    sums[name][1] += share * moment
    total = (WEIGHTS[:, None] * valid).sum()
    return {name: (a / total, g / total) for name, (a, g) in sums.items()}


class Mixing(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = seeded(nn.Linear(2, 3))[0], seeded(nn.Linear(3, 3))[0]

    def forward(self, x):
        z = torch.tanh(self.first(x))
        return self.last(z + 0.5 * z.flip(1).cumsum(1))


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
def test_factors_equal_loops_over_predictions_and_places(sharing):
    net, x = Mixing(), noise(M, 3, 2, seed=1)
    y = torch.tensor([[0, 2, 1], [2, -100, 0], [1, 1, -100], [0, 2, 2], [-100, 1, 0]])
    right = factors(net, x, y, sharing, (y != -100).double(), ("first", "last"))
    found = rt.curvature.kfac(net, "cross_entropy", in_batches(x, y), weight_sharing=sharing)
    for block, (a, g) in zip(found.blocks, right.values(), strict=True):
        assert relative_error(block.A, a) <= HESSIAN
        assert relative_error(block.G, g) <= HESSIAN
        assert not block.A.requires_grad and not block.G.requires_grad
    options = {"weight_sharing": sharing, "matrix": "fisher_mc", "generator": 3}
    few = [rt.curvature.kfac(net, "cross_entropy", in_batches(x, y), chunk=n, draws=2, **options)
           for n in (1, 64)]  # fmt: skip
    assert relative_error(few[0].dense(), few[1].dense()) <= HESSIAN
    many = rt.curvature.kfac(net, "cross_entropy", in_batches(x, y), draws=300, **options)
    bar = 3 / 300**0.5  # spread of a draw: 1 or 2
    assert relative_error(many.blocks[0].G, right["first"][1]) < bar
    assert relative_error(few[1].blocks[0].G, right["first"][1]) > bar


class ClassesFirst(nn.Module):
    def forward(self, z):
        return z.mT


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(), nn.CrossEntropyLoss(reduction="sum")])
def test_inputs_at_ignored_labels_count_for_nothing(loss):
    """Logits are equal at all places, so that K-FAC is exact."""
    net, x = seeded(nn.Linear(2, 3, bias=False), ClassesFirst()), noise(M, 3, 2, seed=1)
    net[0].weight.data.zero_()
    y = torch.tensor([[0, 2, -100], [-100] * 3, [1, -100, -100], [0, 2, 2], [-100, 1, 0]])
    inputs = x[y != -100]
    covariance = torch.eye(3) / 3 - 1 / 9
    right = torch.kron(covariance, inputs.mT @ inputs)
    right = right / len(inputs) if loss.reduction == "mean" else right
    found = rt.curvature.kfac(net, loss, (x, y), chunk=2)
    assert relative_error(found.dense(), right) <= HESSIAN


def test_its_algebra_is_that_of_the_matrix(device):
    net = seeded(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
    x, y = noise(M, 3), noise(M, 3, seed=1)
    found = rt.curvature.kfac(net, nn.MSELoss(reduction="sum"), (x, y))
    mean = rt.curvature.kfac(net, nn.MSELoss(), (x, y))
    assert found.T is found
    matrix, v = found.dense(), noise(len(found.dense()), 2, seed=2)
    there = rt.curvature.kfac(
        copy.deepcopy(net).to(device), nn.MSELoss(reduction="sum"), (x.to(device), y.to(device))
    )
    assert relative_error(there.dense().cpu(), matrix) <= HESSIAN
    assert relative_error(there.solve(v, damping=1.0).values.cpu(),
                          found.solve(v, damping=1.0).values) <= HESSIAN  # fmt: skip
    assert relative_error(matrix, M * 3 * mean.dense()) <= HESSIAN
    for given in (v, v.float()):
        assert relative_error(found @ given, matrix @ given.double()) <= HESSIAN
    assert relative_error(found.diagonal().values, matrix.diagonal()) <= HESSIAN
    spectrum = found.eigenvalues
    assert relative_error(spectrum.eigenvalues, torch.linalg.eigvalsh(matrix)) <= HESSIAN
    solved = found.solve(v, damping=0.1)
    right = torch.linalg.solve(matrix + 0.1 * torch.eye(len(matrix)), v)
    assert solved.converged and relative_error(solved.values, right) <= 1e-10  # condition 1e3
    left = (v - found @ solved.values - 0.1 * solved.values).norm(dim=0)
    assert torch.equal(solved.residuals, left / v.norm(dim=0)) and solved.products == 2
    lowest = torch.linalg.eigvalsh(matrix)[0] + 0.1
    torch.testing.assert_close(solved.error_bounds, left / lowest, rtol=1e-9, atol=0)
    assert not found.solve(v, damping=0.1, tolerance=1e-30).converged
    zero = found.solve(0 * v[:, 0], damping=0.1)
    assert zero.converged and zero.residuals == 0 and zero.values.shape == (len(v),)
    places = torch.arange(len(matrix)).split([12, 4, 12, 3])
    for rows, columns in ((1, 0), (0, 2)):
        names = list(found.row_shapes)
        part = found.block(names[rows], names[columns]).dense()
        assert relative_error(part + 1, matrix[places[rows]][:, places[columns]] + 1) <= HESSIAN
    alone = rt.curvature.kfac(net, nn.MSELoss(reduction="sum"), (x, y), parameters="*.weight")
    weights = torch.cat([places[0], places[2]])
    assert relative_error(alone.dense(), matrix[weights][:, weights]) <= HESSIAN
    assert relative_error(found.block("*.weight").dense(), alone.dense()) <= HESSIAN
    flat = rt.curvature.kfac(net, nn.MSELoss(), (x[:2], y[:2]))
    assert flat.eigenvalues.smallest >= 0.0
    for damping in (0.0, -0.1):
        with pytest.raises(ValueError, match=rf"^damping: got {damping} for eigenvalues from "):
            flat.solve(v, damping=damping)
    with pytest.raises(ValueError, match=r"^damping: got 0.0 for eigenvalues from "):
        flat.solve(v)
    with pytest.raises(ValueError, match=r"^damping: got -1e-09 "):
        found.solve(v, damping=-1e-9)
    with pytest.raises(ValueError, match=r"^damping: got '1', needs a finite number"):
        found.solve(v, damping="1")
    for wrong in (v[:-1], v[..., None], v[:, :0]):
        with pytest.raises(ValueError, match=r"^V: got shape .*, needs \(31,\) or \(31, b\)"):
            found.solve(wrong)


def block_of(names, columns, rows, *, seed):
    a, g = noise(sum(columns), sum(columns), seed=seed), noise(rows, rows, seed=seed + 1)
    return KroneckerBlock(names=names, columns=columns, A=a @ a.T, G=g @ g.T)


def test_blocks_made_by_hand_in_an_order_of_their_own():
    # A bias before its weight, and a layer without one; parameters lie as the mapping has them.
    net = nn.ModuleDict({"p": nn.Linear(2, 3), "q": nn.Linear(3, 2, bias=False)}).double()
    parameters = dict(net.named_parameters()) | {"idle": torch.zeros(7)}
    blocks = [block_of(("q.weight",), (3,), 2, seed=1),
              block_of(("p.bias", "p.weight"), (1, 2), 3, seed=3)]  # fmt: skip
    found = KroneckerOperator(
        blocks, parameters, net, title="Fisher matrix", not_covered={"idle": "none", "x": "no"}
    )
    right = torch.zeros(15, 15)
    first = torch.kron(blocks[1].G, blocks[1].A)  # (out, bias and inputs), row by row
    places = torch.tensor([6, 0, 1, 7, 2, 3, 8, 4, 5])
    right[places[:, None], places] = first
    right[9:, 9:] = torch.kron(blocks[0].G, blocks[0].A)
    assert relative_error(found.dense(), right) <= HESSIAN
    assert dict(found.row_shapes) == {"p.weight": (3, 2), "p.bias": (3,), "q.weight": (2, 3)}
    diagonal = found.diagonal()
    assert relative_error(diagonal.values, right.diagonal()) <= HESSIAN
    for zeros in (diagonal.standard_errors, diagonal.half_widths):
        assert_same(zeros, torch.zeros(15))
    assert diagonal.is_exact is True and diagonal.products == 0
    lines = ["K-FAC of the Fisher matrix, P = 15, 2 layers", "not covered: idle: none"]
    lines.append("not covered: x: no")
    assert str(found) == repr(found) == found.describe() == "\n".join(lines)
    part = found.block("p.weight")
    assert relative_error(part.dense(), right[:6, :6]) <= HESSIAN
    assert part.describe().splitlines() == [
        "K-FAC of the Fisher matrix, P = 6, 1 layers", *str(found).splitlines()[1:]
    ]  # fmt: skip
    kept = found.block(["q.weight", "p.bias"])
    assert [block.names for block in kept.blocks] == [("q.weight",), ("p.bias",)]
    assert [block.columns for block in kept.blocks] == [(3,), (1,)]
    assert relative_error(kept.dense(), right[6:, 6:]) <= HESSIAN
    assert isinstance(found.block("p.*", "p.*"), KroneckerOperator)
    with pytest.raises(ValueError, match="^rows: "):
        found.block("z")
    with pytest.raises(ValueError, match="^columns: "):
        found.block("p.*", "z")
    v = noise(15, 2, seed=7)
    solved = found.solve(v.tolist())
    exact = torch.linalg.solve(right, v)
    # Errors of solutions are condition numbers times round-off; the bound holds of each.
    lowest, largest = torch.linalg.eigvalsh(right)[[0, -1]]
    assert relative_error(solved.values, exact) <= 1e-13 * largest / lowest
    assert solved.method == "eigendecomposition" and solved.products == 2 and solved.converged
    assert solved.residuals.shape == solved.error_bounds.shape == (2,)
    one = found.solve(v[:, 0], damping=1.0)
    assert one.products == 1 and one.residuals.shape == one.error_bounds.shape == ()
    for wrong in (0.0, -1.0):
        with pytest.raises(ValueError, match="^tolerance: got "):
            found.solve(v, tolerance=wrong)
    with pytest.raises(ValueError, match="^V: "):
        found.solve(v * torch.nan)


def test_a_matrix_of_zeros_has_no_inverse():
    block = KroneckerBlock(
        names=("weight",), columns=(2,), A=torch.zeros(2, 2), G=torch.zeros(1, 1)
    )
    net = nn.Linear(2, 1, bias=False)
    found = KroneckerOperator(
        [block], dict(net.named_parameters()), net, title="zero", not_covered={}
    )
    with pytest.raises(ValueError, match=r"^damping: got 0.0 for eigenvalues from 0 to 0, needs a"):
        found.solve(torch.ones(2))
    assert_same(found.solve(torch.ones(2), damping=0.5).values, torch.full((2,), 2.0))


def masked(output, target):
    """Not a number, and without a gradient, where no label counts."""
    counts = (target >= 0).double()
    return counts @ F.cross_entropy(output, target.clamp(0), reduction="none") / counts.sum()


def test_chunks_without_a_label_add_nothing():
    loss = rt.Loss(masked, weights=lambda target: target >= 0)
    net, data = seeded(nn.Linear(3, 3)), (noise(M, 3), torch.tensor([0, -100, 2, 1, -100]))
    one, every = (
        rt.curvature.kfac(net, loss, data, matrix="empirical_fisher", chunk=n) for n in (1, 64)
    )
    assert relative_error(one.dense(), every.dense()) <= HESSIAN


class Beside(nn.Linear):
    def forward(self, x):
        return F.linear(super().forward(x), self.weight)


@pytest.mark.parametrize("power", [-30, 0, 30])
def test_the_size_of_the_data_does_not_say_what_has_factors(power):
    layer = nn.Conv1d(4, 4, 3, padding=1, bias=False)
    net, x = seeded(layer, Beside(4, 4, bias=False)), 2.0**power * noise(M, 4, 4)
    found = rt.curvature.kfac(net, "square", (x, x))
    assert list(found.row_shapes) == ["0.weight"]


class Leaking(nn.Linear):
    def forward(self, x):
        return super().forward(x) + self.part * F.linear(x, self.weight)


@pytest.mark.parametrize(("part", "covered"), [(0.9e-8, True), (1.1e-8, False)])
def test_a_weight_may_be_used_beside_its_layer_by_round_off(part, covered):
    net = seeded(nn.Linear(3, 4), Leaking(4, 2, bias=False))
    net[1].part = part
    found = rt.curvature.kfac(net, "square", (noise(M, 3), noise(M, 2, seed=1)))
    assert list(found.row_shapes) == ["0.weight", "0.bias"] + ["1.weight"] * covered


class Fixed(nn.Module):
    def forward(self, weight):
        return weight.detach()


class Foreign(nn.Module):
    def __init__(self):
        super().__init__()
        self.own = nn.Parameter(torch.randn(4, 4))

    def forward(self, weight):
        return self.own


class Odd(nn.Module):
    """Layers of which each is in some way no linear map of its own weight and input."""

    def __init__(self):
        super().__init__()
        self.plain, self.idle, self.unread = (nn.Linear(4, 4) for _ in range(3))
        self.residual = with_identity(nn.Linear(4, 4), "residual")
        self.dirac = with_identity(nn.Linear(4, 4), "dirac")
        self.normed = parametrizations.weight_norm(nn.Linear(4, 4))
        self.pruned = prune.random_unstructured(nn.Linear(4, 4), "weight", 0.5)
        self.twice, self.never, self.beside = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.grouped, self.norm = nn.Conv1d(4, 4, 1, groups=2), nn.BatchNorm1d(4)
        self.turned, self.fixed = nn.Linear(1, 1), nn.Linear(4, 4, bias=False)
        nn.utils.parametrize.register_parametrization(self.fixed, "weight", Fixed())
        self.lent = nn.Linear(4, 4, bias=False)
        nn.utils.parametrize.register_parametrization(self.lent, "weight", Foreign())

    def forward(self, x):
        self.unread(x)
        z = torch.relu_(self.plain(x)) + 0 * self.idle(x)
        z = self.norm(self.pruned(self.normed(self.dirac(self.residual(z)))))
        z = self.grouped(self.twice(torch.tanh(self.twice(z)))[..., None])[..., 0]
        z = F.linear(self.beside(self.fixed(self.lent(z))), self.beside.weight)
        return z + 0 * self.never.weight.sum() + self.turned(z.mT[..., None]).squeeze(-1).mT


def test_what_has_no_factors_is_listed_with_the_reason():
    torch.manual_seed(0)
    net = Odd().double().eval()
    x, y = noise(M, 4), torch.arange(M) % 4
    found = rt.curvature.kfac(net, "cross_entropy", (x, y))
    covered = {name.split(".")[0] for name in found.row_shapes}
    assert covered == {"plain", "idle", "unread", "residual"}
    assert not found.block("unread.*").dense().any() and found.block("plain.*").dense().any()
    reasons = {name.split(".")[0]: why for name, why in found.not_covered.items()}
    assert set(found.row_shapes) | set(found.not_covered) == set(dict(net.named_parameters()))
    parametrized = "its layer's weight is not a parameter plus a constant (parametrized)"
    assert reasons == {
        "dirac": parametrized, "normed": parametrized, "pruned": parametrized,
        "fixed": parametrized, "lent": parametrized,
        "twice": "its layer is called 2 times in a pass of the net, needs one call",
        "never": "its layer is not called in a pass of the net, needs one call",
        "beside": "it is used beside its layer",
        "grouped": "its convolution has 2 groups",
        "norm": "BatchNorm1d is no linear or convolutional layer",
        "turned": "its layer's input has no axis of samples in front",
    }  # fmt: skip
    assert "not covered: norm.weight: BatchNorm1d is no" in repr(found)
    with pytest.raises(ValueError, match="^net: K-FAC covers no parameter of it: norm.weight: B"):
        rt.curvature.kfac(net, "cross_entropy", (x, y), parameters="norm.*")


def test_nets_in_single_precision_are_computed_in_double():
    net = seeded(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).float()
    x, y = noise(M, 3).float(), torch.arange(M) % 2
    single = rt.curvature.kfac(net, "cross_entropy", (x, y))
    double = rt.curvature.kfac(copy.deepcopy(net).double(), "cross_entropy", (x.double(), y))
    assert next(net.parameters()).dtype == torch.float32
    assert relative_error(single.dense(), double.dense()) <= HESSIAN


class Single(nn.Linear):
    def forward(self, x):
        return super().forward(x.float())


def test_nets_that_take_single_precision_only_are_refused():
    x, y = noise(M, 3), torch.arange(M) % 2
    with pytest.raises(ValueError, match="^net: K-FAC needs it in float64, to which it cannot"):
        rt.curvature.kfac(Single(3, 2).float(), "cross_entropy", (x, y))
    with pytest.raises(ValueError, match="^data x: the net does not take samples of shape"):
        rt.curvature.kfac(Single(3, 2).float(), "cross_entropy", (x[:, 1:], y))
