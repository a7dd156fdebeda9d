"""Injected noise against its laws; the bound's ingredients from their definitions."""

import math

import numpy as np
import pytest
import torch
from oracles import noise
from tolerances import relative_error
from torch import nn

import resid_theory as rt
from resid_theory import stability

EXACT = 1e-12  # what exact paths promise


def conv_net(bias=False):
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1, bias=bias),
        nn.ReLU(inplace=True),
        nn.Conv2d(3, 4, 3, stride=2, bias=bias),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16, 5, bias=bias),
    )


def within(measured, predicted, draws, entries):
    """Whether a mean square over draws agrees with its expectation, within four errors.

    A squared norm of normal noise through a matrix varies by √(2 / effective rank), at most √2.
    """
    relative = (measured.square() / predicted.square()).mean()
    return abs(float(relative) - 1) < 4 * math.sqrt(2 / (draws * entries))


# -- activations -----------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [2.0**-80, 2.0**80], ids=str)
def test_tiny_and_huge_single_precision_has_the_same_law(scale):
    net, x = (
        nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3, bias=False)).float(),
        noise(4, 5),
    )
    one = stability.activation_noise(net, x, levels=[0.1], draws=2, probes=5)
    with torch.no_grad():
        net[2].weight.mul_(scale)
    other = stability.activation_noise(net, x, levels=[0.1], draws=2, probes=5)
    assert torch.allclose(one.predicted, other.predicted, rtol=1e-6, atol=0)


def test_levels_share_their_noise():
    """In a linear net the error is proportional to the level, exactly."""
    net = nn.Sequential(nn.Linear(5, 5), nn.Sequential(nn.Linear(5, 3)))
    found = stability.activation_noise(net, noise(2, 5), levels=[0.1, 0.2], draws=2, probes=2)
    assert relative_error(found.measured[1], 2 * found.measured[0]) < 1e-9
    assert found.places == ("0", "1.0") and found.measured.shape == (2, 2, 2)


def steep_net():
    """Layers whose Jacobians have orthogonal columns: any one sign vector gives their norms."""
    net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 6, bias=False))
    with torch.no_grad():
        net[0].weight.copy_(torch.diag(torch.tensor([1.0, -2.0, 0.5, 3.0])))
        net[2].weight.copy_(torch.linalg.qr(noise(6, 4, seed=5)).Q * torch.tensor([2.0, 1, 3, 4]))
    return net


@pytest.mark.parametrize("start", [0, 2])
def test_the_law_is_that_of_exact_jacobians_for_each_sample(start):
    """Samples of norms 1 to 100 in unequal batches: each has noise by its own norm."""
    net, x = steep_net(), noise(5, 4) * torch.tensor([[1.0], [100], [1e-2], [10], [1]])
    found = stability.activation_noise(
        net, x, start=start, levels=[1e-7], draws=300, probes=2, batch=2
    )
    for row, z in enumerate(net[:start](x)):
        for place, stop in enumerate(stop for stop in (1, 3) if stop > start):
            jacobian = torch.func.jacrev(net[start:stop])(z)
            law = (1e-7 * jacobian.norm() / 2 * z.norm() / net[start:stop](z).norm()).item()
            assert found.predicted[0, place, row].item() == pytest.approx(law, rel=1e-12)
            measured = found.measured[0, place, row].item() / law
            assert abs(measured**2 - 1) < 4 * (2 / 300) ** 0.5


def test_the_error_at_the_output_is_behind_the_last_module():
    net, x = nn.Sequential(*steep_net(), nn.Softmax(1)), noise(4, 4)
    found = stability.activation_noise(net, x, levels=[1e-6], draws=300, probes=2, batch=3)
    jacobians = torch.func.vmap(torch.func.jacrev(lambda z: net(z[None])[0]))(x)
    ratio = jacobians.flatten(1).norm(dim=1) / 2 * x.norm(dim=1) / net(x).norm(dim=1)
    law = (1e-6 * ratio).detach()
    for place in range(2):
        # Rank one at least: a squared norm varies by 2, in 4 samples and 300 draws each.
        assert float((found.at_output[0, place] / law - 1).abs().max()) < 4 * (0.5 / 300) ** 0.5


@pytest.mark.parametrize(
    "measure",
    [
        lambda net, x: stability.activation_noise(net, x, draws=2, probes=2),
        lambda net, x: stability.weight_noise(net, x, draws=2),
    ],
    ids=["activations", "weights"],
)
def test_a_first_module_that_works_in_place_changes_nothing(measure):
    layer, x = nn.Linear(4, 3), noise(5, 4)
    one, other = (measure(nn.Sequential(nn.SiLU(inplace=b), layer), x) for b in (True, False))
    for name in ("measured", "predicted", "at_output"):
        assert torch.equal(getattr(one, name), getattr(other, name))


# -- weights ---------------------------------------------------------------------------------------

KINDS = {
    "linear": (lambda: nn.Linear(5, 4), (5,)),
    "tokens": (lambda: nn.Linear(4, 3), (2, 4)),
    "conv": (lambda: nn.Conv2d(2, 6, 3, padding=1), (2, 4, 4)),
    "strided": (lambda: nn.Conv2d(2, 6, 3, stride=2), (2, 5, 5)),
    "circular groups": (
        lambda: nn.Conv2d(4, 6, 3, padding=1, groups=2, padding_mode="circular"),
        (4, 4, 4),
    ),
    "residual": (lambda: rt.simplified_net(8, identity="residual")[2], (16, 4, 4)),
    "explicit": (lambda: rt.simplified_net(8, identity="explicit")[2], (16, 4, 4)),
}


class Overwriting(nn.Module):
    """Overwrites what its layer has read."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        z = x + 0
        y = self.layer(z)
        z.copy_(z.flip(0).square())
        return y


def test_an_input_that_is_overwritten_counts_as_it_was_read():
    net, x = Overwriting(), noise(5, 4)
    found, plain = (stability.weight_noise(n, x, draws=2) for n in (net, nn.Sequential(net.layer)))
    assert torch.equal(found.measured, plain.measured)
    assert torch.equal(found.predicted, plain.predicted)


class Averaging(nn.Module):
    """Its layer reads the mean of the samples."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return x + self.layer(x.mean(0, keepdim=True))


def test_a_layer_that_no_sample_has_to_itself_is_named():
    with pytest.raises(ValueError, match="^layers: {'layer': 'its input has the shape .1, 4. for"):
        stability.weight_noise(Averaging(), noise(5, 4), layers=["layer"])


@pytest.mark.parametrize("make, shape", KINDS.values(), ids=KINDS)
def test_noise_in_weights_follows_the_law(make, shape):
    net, x = nn.Sequential(make()), noise(3, *shape)
    found = stability.weight_noise(net, x, levels=[0.1, 0.2], draws=100)
    # Outputs have noise of their own, three at least.
    assert within(found.measured, found.predicted, draws=100, entries=3)
    assert relative_error(found.measured[1], 2 * found.measured[0]) < EXACT


@torch.no_grad()
def plain_weight_noise(net, x, levels, draws, seed, relative):
    """Errors of all layers by nets with other weights, and the law by the patches they read."""
    source, rows = torch.Generator().manual_seed(seed), []
    for name, layer in net.named_modules():
        if not isinstance(layer, (nn.Conv2d, nn.Linear)):
            continue
        z, clean, weight = net[: int(name)](x), net(x), layer.weight.clone()
        before = layer(z)
        below = (before - layer(torch.zeros_like(z))).flatten(1).norm(dim=1)
        patches = z
        if isinstance(layer, nn.Conv2d):
            patches = nn.functional.unfold(z, 3, stride=layer.stride, padding=layer.padding)
        law = (len(weight) * patches.flatten(1).square().sum(1)).sqrt() / below
        noises = [torch.randn(weight.shape, generator=source) for _ in range(draws)]
        for level in levels:
            scale = level * float(weight.square().mean().sqrt()) if relative else level
            squares = torch.zeros(2, len(x))
            for some in noises:
                layer.weight.copy_(weight + scale * some)
                both = (layer(z) - before, below), (net(x) - clean, clean.norm(dim=1))
                for total, (change, scale_of) in zip(squares, both, strict=True):
                    total += (change.flatten(1).norm(dim=1) / scale_of).square()
            layer.weight.copy_(weight)
            rows.append(torch.stack([*(squares / draws).sqrt(), scale * law]))
    return torch.stack(rows).view(-1, len(levels), 3, len(x)).permute(1, 2, 0, 3)


def pictures():
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 4, 3, stride=2), nn.Tanh(),
        nn.Flatten(), nn.Linear(4 * 2 * 3, 5),
    ), (2, 5, 7), ("0", "2", "5")  # fmt: skip


def repeated():
    """Uses its first layer twice: errors are those of the first use."""
    layer = nn.Linear(4, 4)
    return nn.Sequential(layer, nn.Tanh(), layer, nn.Linear(4, 3)), (4,), ("0", "3")


@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize("make", [pictures, repeated])
def test_curves_of_noisy_weights_are_those_of_nets_with_other_weights(make, relative):
    """Of all layers, levels and draws, in unequal batches, which meet the same noise."""
    net, shape, names = make()
    x = noise(5, *shape) * torch.tensor([1.0, 3, 0.1, 1, 10]).view(5, *[1] * len(shape))
    levels = [1.0, 1e-3]
    found = stability.weight_noise(
        net, x, levels=levels, relative=relative, draws=3, generator=11, batch=2
    )
    assert found.places == names and found.levels.tolist() == levels
    assert (found.relative, found.draws, found.notes) == (relative, 3, ())
    exact = plain_weight_noise(net, x, levels, 3, 11, relative)
    for row, name in enumerate(("measured", "at_output", "predicted")):
        torch.testing.assert_close(getattr(found, name), exact[:, row], rtol=1e-9, atol=0)


class Tied(nn.Module):
    """A table that is looked up in, is the head, and is multiplied the other way round, too."""

    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
        self.head.weight = self.table.weight

    def forward(self, words):
        return torch.tanh(self.head(self.table(words))) @ self.table.weight


def test_uses_of_a_weight_without_the_noise_are_noted():
    net, words = Tied(), torch.arange(5)
    found = stability.weight_noise(net, words, layers=["head"], levels=[0.1], draws=1, generator=2)
    (note,) = found.notes
    assert note.startswith("head: noise is in this map, not in other uses of its weight: embedding")
    assert note.endswith("table.weight.mT")
    change = 0.1 * torch.randn(5, 4, generator=torch.Generator().manual_seed(2))
    alone = torch.tanh(net.table(words) @ (net.head.weight + change).mT) @ net.table.weight
    error = (alone - net(words)).norm(dim=1) / net(words).norm(dim=1)
    torch.testing.assert_close(found.at_output[0, 0], error.detach(), rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    "levels",
    [[], 0.1, [[0.1]], [0.1, 0.0], [0.1, -1.0], [torch.inf, 0.1], [torch.nan, 0.1]],
    ids=str,
)
@pytest.mark.parametrize("measure", [stability.activation_noise, stability.weight_noise])
def test_levels_are_a_list_of_numbers_above_zero(measure, levels):
    with pytest.raises(ValueError) as caught:
        measure(conv_net(), noise(1, 2, 5, 5), levels=levels)
    assert str(caught.value) == f"levels: got {levels!r}, needs a list of finite numbers above 0"


@pytest.mark.parametrize("measure", [stability.activation_noise, stability.interlayer_smoothness])
@pytest.mark.parametrize("start", [-1, 6])
def test_places_outside_a_chain_are_refused(measure, start):
    with pytest.raises(ValueError) as caught:
        measure(conv_net(), noise(1, 2, 5, 5), start=start)
    needs = "needs at least 0" if start < 0 else "the last linear layer is number 5"
    assert str(caught.value) == f"start: got {start}, {needs}"
    assert measure(conv_net(), noise(1, 2, 5, 5), start=5)


@pytest.mark.parametrize("name", ["epsilon", "margin"])
def test_what_is_above_zero_is_checked(name):
    call = {"epsilon": stability.interlayer_smoothness, "margin": stability.compression_bound}[name]
    for given in (0.0, -1.0, torch.inf):
        with pytest.raises(ValueError, match=f"^{name}: got {given}, needs a finite number above"):
            call(conv_net(), noise(1, 2, 5, 5), **{name: given})


def test_every_layer_of_a_branching_net_is_taken():
    net, x = rt.full_net(8), noise(2, 3, 8, 8)
    found = stability.weight_noise(net, x, levels=[0.1], draws=1)
    assert found.places == rt.layer_cushions(net, x).layers
    assert "block1.branch.conv1" in str(found)


# -- the bound -------------------------------------------------------------------------------------


class Activations(nn.Module):
    """Calls one activation twice, and what is in their module and none of one input."""

    def __init__(self):
        super().__init__()
        self.act, self.idle, self.gate = nn.ReLU(inplace=True), nn.Tanh(), nn.GLU()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x):
        x = self.act(self.act(x + 0) - x.abs())
        return self.attention(x[:, None], x[:, None], x[:, None])[0], self.gate(x)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [([[3.0, -4, 0, 0]], torch.inf), ([[0.0, 0, 0, 0]], 0.0), ([[-1.0, 0, 0, 0]], torch.inf)],
    ids=["second call", "zeros", "first call"],
)
def test_contraction_is_that_of_the_worst_call(rows, expected):
    assert stability.activation_contraction(Activations(), torch.tensor(rows)) == {
        "act": expected, "idle": 0.0
    }  # fmt: skip
    net, x = nn.Sequential(nn.ReLU()), torch.tensor([[0.0, 0], [5, -12], [3, -4], [8, -6]])
    for order in (x, x.flip(0)):
        found = stability.activation_contraction(net, order, batch=3)
        assert found == {"0": pytest.approx(13 / 5, rel=1e-12)}


def test_the_share_of_draws_is_that_of_order_statistics():
    ratios = torch.arange(1.0, 41).roll(17).view(5, 8)
    found = stability.Smoothness(ratios=ratios)
    for delta, rank in ((0.01, 1), (0.05, 2), (0.5, 20), (0.99, 39)):
        assert found.rho(delta) == rank == np.quantile(ratios, delta, method="lower")
    assert found.rho() == 2
    assert [" ".join(line.split()) for line in str(found).splitlines()] == [
        "interlayer smoothness of 8 samples, 5 draws each", "δ ρ", "0.01 1", "0.05 2", "0.5 20",
    ]  # fmt: skip


def test_overlap_is_that_of_the_longer_side():
    net = nn.Sequential(nn.Conv2d(2, 3, (2, 5), stride=(1, 2)), nn.ReLU(), nn.Conv2d(3, 2, (3, 1)))
    found = stability.compression_bound(net, noise(2, 2, 5, 7), margin=1.0)
    assert found.overlap.tolist() == [3, 3]
    each = found.spread * 3 / (found.layer_cushions * found.interlayer)
    torch.testing.assert_close(found.terms, each.square())


def test_smoothness_is_infinite_in_a_linear_net_and_finite_behind_kinks():
    x = noise(3, 2, 5, 5)
    linear = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Conv2d(3, 4, 3))
    found = stability.interlayer_smoothness(linear, x, draws=4)
    assert found.rho() > 1e9  # round-off is all that is left
    kinked = stability.interlayer_smoothness(conv_net(), x, epsilon=0.5, draws=50)
    assert 0.1 < kinked.rho(0.05) <= kinked.rho(0.5) < 1e3
    assert kinked.ratios.shape == (50, 3)


def test_smoothness_from_its_definition():
    net, x = conv_net(), noise(1, 2, 5, 5)
    found = stability.interlayer_smoothness(net, x, epsilon=0.5, draws=3, generator=1)
    source = torch.Generator().manual_seed(1)
    for ratio in found.ratios:
        eta = 0.5 * x.norm() / 50**0.5 * torch.randn(x.shape, generator=source)
        worst = []
        for stop in (1, 3, 6):
            linear = torch.func.jvp(lambda z, k=stop: net[:k](z.clone()), (x,), (x + eta,))[1]
            deviation = (net[:stop]((x + eta).clone()) - linear).norm()
            if stop > 1:  # the first layer is linear
                worst.append(eta.norm() * net[:stop](x.clone()).norm() / x.norm() / deviation)
        assert ratio.item() == pytest.approx(min(worst).item(), rel=1e-9)


def test_smoothness_of_several_batches():
    """Samples of other norms, two at a time, whose draws follow one another."""
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3), nn.Sigmoid())
    x = noise(5, 4) * torch.tensor([[1.0], [10], [0.1], [1], [3]])
    found = stability.interlayer_smoothness(net, x, start=1, epsilon=0.3, draws=2, batch=2)
    source, ratios = torch.Generator().manual_seed(0), []
    for part in net[:1](x).split(2):
        for _ in range(2):
            eta = 0.3 * part.norm(dim=1, keepdim=True) / 5**0.5
            eta = eta * torch.randn(part.shape, generator=source)
            value, linear = torch.func.jvp(net[1:3], (part,), (eta,))
            deviation = (net[1:3](part + eta) - value - linear).norm(dim=1)
            relative = eta.norm(dim=1) / part.norm(dim=1)
            ratios.append((relative * value.norm(dim=1) / deviation).detach())
    exact = [torch.stack(ratios[n : n + 2]) for n in (0, 2, 4)]
    torch.testing.assert_close(found.ratios, torch.cat(exact, 1), rtol=1e-9, atol=0)
    table = found.frame()
    assert table["draw"].tolist() == [0] * 5 + [1] * 5
    assert table["sample"].tolist() == [*range(5)] * 2
    assert table["ratio"].tolist() == found.ratios.flatten().tolist()


def test_the_noise_of_smoothness_is_a_tenth_unless_told():
    net, x = conv_net(), noise(1, 2, 5, 5)
    found = [stability.interlayer_smoothness(net, x, draws=3, **given).ratios
             for given in ({}, {"epsilon": 0.1})]  # fmt: skip
    assert torch.equal(*found)


def test_noise_in_activations_is_drawn_ten_times_unless_told():
    found = stability.activation_noise(conv_net(), noise(1, 2, 5, 5), probes=1)
    assert found.draws == 10 and found.levels.tolist() == [0.001, 0.01, 0.1, 1.0]


def test_data_of_a_bound_are_read_in_the_dtype_of_the_net():
    net, x = conv_net().double(), noise(2, 2, 5, 5).float()
    found, wide = (
        stability.compression_bound(net, z, margin=1.0, probes=2) for z in (x, x.double())
    )
    assert torch.equal(found.layer_cushions, wide.layer_cushions)


def test_bound_of_a_small_net_from_full_jacobians():
    """mu_i, mu_{i->}, c, ||f|| from their definitions; probes agree within a few percent."""
    net, x = conv_net(), noise(3, 2, 5, 5)
    found = stability.compression_bound(net, x, margin=2.0, probes=500)
    cushions = rt.layer_cushions(net, x)
    assert found.layers == ("0", "2", "5") and found.samples == 3
    assert relative_error(found.layer_cushions, cushions.minimum) < EXACT
    least = []
    for start in (1, 3, 6):
        shape = net[:start](x).shape[1:]
        values = [shape[1:].numel() ** 0.5 / shape.numel() ** 0.5]
        for stop in (3, 6):
            if stop > start:
                exact = rt.interlayer_cushions(net, x, start=start, stop=stop, method="exact")
                values.append(exact.minimum.item())
        least.append(min(values))
    assert found.interlayer.tolist() == pytest.approx(least, rel=0.1)  # 500 probes
    assert found.overlap.tolist() == [3, 2, 1]
    assert found.contraction == max(stability.activation_contraction(net, x).values())
    assert found.output_norm == pytest.approx(net(x).norm(dim=1).max().item(), rel=1e-12)


@torch.no_grad()
def plain_bound(net, x, margin):
    """The number of parameters by full Jacobians of a net Conv1d, ReLU, Conv1d of side 1."""
    places, layers = x.shape[2], (0, 2)
    largest, contraction, sums = 0.0, 1.0, [torch.inf, torch.inf]
    cushions, spread = [torch.inf, torch.inf], 1.0
    for sample in x:
        z = [sample, net[0](sample), net[:2](sample), net(sample)]
        largest = max(largest, float(z[3].norm()))
        contraction = max(contraction, float(z[1].norm() / z[2].norm()))
        for number, layer in enumerate(layers):
            mu = z[layer + 1].norm() / net[layer].weight.norm() / z[layer].norm()
            cushions[number] = min(cushions[number], float(mu))
            sums[number] = min(sums[number], (places / z[layer + 1].numel()) ** 0.5)
        jacobian = torch.func.jacrev(net[1:])(z[1])
        by_place = jacobian.square().sum((0, 2, 3))
        spread = max(spread, float((places * by_place.max() / by_place.sum()).sqrt()))
        product = places**0.5 * z[3].norm() / jacobian.norm() / z[1].norm()
        sums[0] = min(sums[0], float(product))
    first = (spread / (cushions[0] * sums[0])) ** 2 + 1 / (cushions[1] * sums[1]) ** 2
    return (contraction * 2 * largest / margin) ** 2 * first


def test_a_bound_of_small_outputs_and_activations_that_stretch():
    net, x = nn.Sequential(nn.Linear(3, 4), nn.Softplus(), nn.Linear(4, 2)), noise(5, 3)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter *= 0.01
    found = stability.compression_bound(net, x, margin=1.0, batch=2)
    z, y = net[:1](x), net[:2](x)
    contraction = (z.norm(dim=1) / y.norm(dim=1)).max().item()
    assert contraction < 0.1 and found.contraction == pytest.approx(contraction, rel=1e-12)
    largest = net(x).norm(dim=1).max().item()
    assert largest < 0.1 and found.output_norm == pytest.approx(largest, rel=1e-12)


class Counted(nn.Tanh):
    """Keeps the numbers of rows that it is given."""

    def forward(self, x):
        self.rows.append(len(x))
        return super().forward(x)


def test_jacobians_of_a_bound_take_256_rows_at_a_time():
    middle = Counted()
    middle.rows = []
    net = nn.Sequential(nn.Linear(3, 4), middle, nn.Linear(4, 2))
    for samples, probes, parts in ((1, 300, [256] * 2), (30, 20, [240] * 3)):
        middle.rows.clear()
        stability.activation_noise(net, noise(samples, 3), levels=[0.1], draws=1, probes=probes)
        # One sample for the shapes, J z, 20 signs for 8 samples each at most, no noise and noise.
        assert middle.rows == [1, samples, *parts, samples, samples]


@pytest.mark.parametrize("batch", [2, 6])
@pytest.mark.parametrize("turned", [False, True])
def test_extremes_of_the_bound_are_those_of_all_batches(batch, turned):
    """Orthogonal columns make every probe exact; turned, the extremes are in other batches."""
    net = nn.Sequential(nn.Conv1d(2, 3, 1, bias=False), nn.ReLU(), nn.Conv1d(3, 4, 1, bias=False))
    net[2].weight.data[:, :, 0] = torch.linalg.qr(noise(4, 3, seed=2)).Q * torch.tensor([1.0, 2, 3])
    x = noise(5, 2, 6, seed=3) * torch.tensor([4.0, 1, 2, 1, 1])[:, None, None]
    x = x.flip(0) if turned else x
    more = torch.cat([x[:3], 0 * x[:1], x[3:]])  # a sample of zeros has no part in any extreme
    found = stability.compression_bound(net, more, margin=0.7, probes=2, batch=batch)
    assert found.samples == 6 and float(found.spread[0]) > 1.05
    assert found.effective_parameters == pytest.approx(plain_bound(net, x, 0.7), rel=1e-10)


class Pair(nn.Module):
    def forward(self, x):
        return x, x


class Doubled(nn.Linear):
    def forward(self, x):
        return super().forward(x) + super().forward(2 * x)


class Late(nn.Module):
    """Calls its second layer for few samples only."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(5, 5), nn.Linear(5, 5)

    def forward(self, x):
        x = self.first(x)
        return self.second(x) if len(x) < 5 else x


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: stability.activation_noise(rt.full_net(8), noise(1, 3, 8, 8)),
         "net: block1 is a Block with layers of its own"),
        (lambda x: stability.activation_noise(nn.Linear(2, 2), x), "net: got Linear, needs"),
        (lambda x: stability.activation_noise(nn.Sequential(nn.ReLU()), x),
         "net: has no linear layer, needs at least one"),
        (lambda x: stability.activation_noise(
            nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 2)), x[:, 0, 0].long().abs()),
         "data x: the input of module 0 of the chain is torch.int64, needs a tensor of floating"),
        (lambda x: stability.activation_noise(nn.Sequential(Pair(), nn.Linear(5, 2)), x, start=1),
         "data x: the input of module 1 of the chain is tuple, needs a tensor of floating"),
        (lambda x: stability.weight_noise(nn.LayerNorm(5), x), "net: has no layer into whose weig"),
        (lambda x: stability.weight_noise(Late(), noise(7, 5), batch=6),
         "net: the layer 'second' cannot be measured: the rows of its input"),
        (lambda x: stability.compression_bound(
            nn.Sequential(Doubled(5, 4), nn.ReLU(), nn.Linear(4, 2)), noise(3, 5), margin=1.0),
         "net: 0 is not one linear map"),
        (lambda x: stability.weight_noise(conv_net(), x, layers=["7"]), "layers: unknown name"),
        (lambda x: stability.activation_contraction(nn.Linear(2, 2), x), "net: has no activation"),
        (lambda x: stability.interlayer_smoothness(conv_net(), x).rho(1.0), "delta: got 1.0"),
    ],
    ids=range(11),
)  # fmt: skip
def test_refusals(call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call(noise(2, 2, 5, 5))
