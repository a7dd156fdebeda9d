"""Interlayer cushions against full Jacobians; probes against their own error bars."""

from dataclasses import replace

import pytest
import torch
from oracles import noise
from tolerances import relative_error
from torch import nn

import resid_theory as rt
from resid_theory.data import Data
from resid_theory.stability.jacobian import (
    _by_two_gradients,
    better_side,
    differentiable,
    jacobian_product,
    products,
    squared_norm,
)
from resid_theory.stability.submaps import map_between

EXACT = 1e-12  # what exact paths promise


def oracle(function, z, kappa):
    """The definition, with the whole Jacobian of one sample after another."""
    values = []
    for one in z:
        # Cloned: a map may work in place.
        jacobian = torch.func.jacrev(lambda x: function(x.clone()[None])[0])(one)
        matrix = jacobian.reshape(-1, one.numel())
        ratio = (matrix @ one.flatten()).norm() / matrix.norm() / one.norm()
        factor = {"none": 1, "total": one.numel(), "spatial": one.shape[1:].numel()}[kappa]
        values.append(ratio.detach() * factor**0.5)
    return torch.stack(values).cpu()


def small_net():
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1),
        nn.BatchNorm2d(3),
        nn.ReLU(inplace=True),
        nn.Conv2d(3, 4, 3, stride=2),
        nn.SiLU(),
        nn.Flatten(),
        nn.Linear(16, 5),
    ).eval()


class Wrapped(nn.Module):
    """The same net, not sequential, with a shortcut around its middle."""

    def __init__(self, net):
        super().__init__()
        self.net = net
        self.shortcut = nn.Linear(50, 5)

    def forward(self, x):
        return self.net(x) + self.shortcut(x.flatten(1))


@pytest.mark.parametrize("kappa", ["none", "spatial", "total"])
@pytest.mark.parametrize(
    "start, stop", [(0, 1), (1, 4), (2, 3), (2, None), (6, None), (-3, None), (3, 7)], ids=str
)
def test_exact_cushions_are_those_of_the_jacobian(start, stop, kappa, device):
    net = small_net().to(device)
    x = noise(3, 2, 5, 5, device=device)
    found = rt.interlayer_cushions(
        net, x, start=start, stop=stop, kappa=kappa, method="exact", batch=7
    )
    expected = oracle(net[start:stop], net[:start](x), kappa)
    assert relative_error(found.values[0], expected) < EXACT
    assert not found.standard_errors.any() and found.probes == (0,)
    sizes = net[:start](x)[0].numel(), net[:stop](x)[0].numel()
    assert found.sides == ("out" if sizes[1] <= sizes[0] else "in",)


@pytest.mark.parametrize("start, stop", [("net.1", "net.4"), ("net.2", None), ("net.5", "net.6")])
def test_any_module_with_what_goes_around_it_held_fixed(start, stop):
    net, x = small_net(), noise(3, 2, 5, 5)
    first, last = int(start[-1]), stop and int(stop[-1])
    found = rt.interlayer_cushions(Wrapped(net), x, start=start, stop=stop, method="exact", batch=8)
    expected = oracle(net[first:last], net[:first](x), "spatial")
    assert relative_error(found.values[0], expected) < EXACT


def test_names_and_numbers_mean_the_same():
    net, x = rt.full_net(8), noise(2, 3, 8, 8)
    named = rt.interlayer_cushions(net, x, start="block1", stop="block3", probes=4)
    numbered = rt.interlayer_cushions(net, x, start=3, stop=5, probes=4)
    assert torch.equal(named.values, numbered.values)
    assert named.pieces == ("block1:block3",)


def test_blocks_of_a_net_by_one_call():
    net = rt.full_net(8, generator=1)
    x = noise(2, 3, 6, 4)
    found = rt.stability.block_cushions(net, x, method="exact")
    assert found.pieces == ("block1", "block2", "block3")
    for number, values in enumerate(found.values):
        expected = oracle(net.eval()[3 + number], net[: 3 + number](x), "spatial")
        assert relative_error(values, expected) < EXACT
    one = rt.stability.block_cushions(net, x, blocks=["block2.branch"], method="exact")
    branch = oracle(net[4].branch, net[:4](x), "spatial")
    assert relative_error(one.values[0], branch) < EXACT
    with pytest.raises(ValueError, match="^blocks: Sequential has no children named block1"):
        rt.stability.block_cushions(small_net(), noise(2, 2, 5, 5))
    with pytest.raises(ValueError, match="^blocks: unknown name 'block9'"):
        rt.stability.block_cushions(net, x, blocks=["block9"])


@pytest.mark.parametrize("probes", [2, 4, 5, 64])
def test_auto_takes_the_cheaper_way(probes):
    net, x = small_net(), noise(2, 2, 5, 5)
    found = rt.interlayer_cushions(net, x, start=3, probes=probes)
    assert found.probes == ((0,) if probes >= 5 else (probes,))
    assert not probes >= 5 or found.sides == ("out",)


@pytest.mark.parametrize("side", ["in", "out"])
def test_probes_are_unbiased_with_the_variance_of_random_signs(side):
    net = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 8))
    z = noise(2, 6)
    mean, standard_error = squared_norm(
        net, z, probes=4000, side=side, generator=torch.Generator(), rows=1000
    )
    for number in range(2):
        jacobian = torch.func.jacrev(lambda x: net(x))(z[number]).detach()
        gram = jacobian.T @ jacobian if side == "in" else jacobian @ jacobian.T
        variance = 2 * (gram.square().sum() - gram.diagonal().square().sum())
        error = (variance / 4000) ** 0.5
        assert abs(mean[number] - jacobian.square().sum()) < 4 * error
        # The standard deviation of a sample standard deviation is a few percent here.
        assert standard_error[number] == pytest.approx(error.item(), rel=0.15)


def test_a_diagonal_gram_matrix_needs_one_side_and_has_no_error():
    layer = nn.Linear(6, 3, bias=False)
    nn.init.orthogonal_(layer.weight)
    layer.weight.data *= torch.tensor([[1.0], [2.0], [3.0]])  # J Jᵀ diagonal, JᵀJ not
    found = rt.interlayer_cushions(
        nn.Sequential(layer), noise(3, 6), start=0, method="probes", probes=2
    )
    assert found.sides == ("out",)
    assert float((found.standard_errors / found.values).max()) < EXACT


@pytest.mark.parametrize("side", ["in", "out"])
def test_the_side_is_that_of_most_samples_whatever_their_scale(side):
    """Orthogonal columns need no probes on the side "in", orthogonal rows none on the other."""
    matrix = torch.linalg.qr(noise(4, 4)).Q * torch.tensor([1.0, 2, 3, 4])
    few, most = (matrix, matrix.T) if side == "out" else (matrix.T, matrix)

    def function(z):
        return torch.where(z[:, :1] > 0, 1e3 * z @ few.T, z @ most.T)

    z = torch.tensor([1.0, -1, -1, -1])[:, None] * noise(4, 4).abs()
    assert better_side(function, z, generator=torch.Generator(), rows=100) == side


class Recorded:
    """A linear map from 4 to 5 entries that records how many rows it is given."""

    def __init__(self):
        self.matrix, self.rows = noise(5, 4, seed=3), []

    def __call__(self, z):
        self.rows.append(len(z))
        return z @ self.matrix.T


@pytest.mark.parametrize(("side", "probes", "rows", "expected"), [
    ("in", None, 7, [6, 6]), ("in", None, 100, [12]), ("in", 5, 7, [6, 6, 6]),
    ("in", 3, 1, [3, 3, 3]),
    ("out", None, 7, [1, 6]), ("out", None, 100, [1, 15]), ("out", 3, 1, [1, 3]),
])  # fmt: skip
def test_products_take_as_many_rows_as_they_may(side, probes, rows, expected):
    """Three samples for each vector; on the side "out", after one alone, one graph for all."""
    function, source = Recorded(), torch.Generator().manual_seed(0)
    found = list(products(function, noise(3, 4), side, probes, source, rows))
    assert function.rows == expected
    together = torch.cat(found)
    if probes is None:
        exact = function.matrix.T if side == "in" else function.matrix
        assert torch.equal(together, exact[:, None].expand(-1, 3, -1))
        return
    assert together.shape == (probes, 3, 5 if side == "in" else 4)
    if side == "in":
        signs = together @ torch.linalg.pinv(function.matrix).T
        torch.testing.assert_close(signs.abs(), torch.ones_like(signs))


@pytest.mark.parametrize(("samples", "expected"), [(20, [64, 1, 64]), (3, [24, 1, 24])])
def test_the_side_is_chosen_by_eight_samples_and_signs(samples, expected):
    function = Recorded()
    better_side(function, noise(samples, 4), generator=torch.Generator(), rows=1000)
    assert function.rows == expected


def test_where_neither_side_varies_one_graph_serves_all_signs():
    net = nn.Sequential(nn.Identity())  # J = I
    assert rt.interlayer_cushions(net, noise(3, 4), start=0, method="probes").sides == ("out",)


@pytest.mark.parametrize("method", ["exact", "probes"])
@pytest.mark.parametrize("outputs", [3, 6])
def test_a_map_that_starts_in_place_overwrites_copies(method, outputs):
    """Shorter on the side "out" for 3 outputs, on "in" for 6."""
    layer, x = nn.Linear(4, outputs), noise(5, 4)
    before = x.clone()
    one, other = (
        rt.interlayer_cushions(
            nn.Sequential(nn.SiLU(inplace=inplace), layer), x, start=0, method=method, batch=3
        )
        for inplace in (True, False)
    )
    assert torch.equal(x, before) and one.sides == other.sides
    assert torch.equal(one.values, other.values)
    assert torch.equal(one.standard_errors, other.standard_errors)


def test_blocks_have_the_inputs_that_they_were_given():
    layers, x = (nn.Linear(4, 6), nn.Linear(6, 3)), noise(5, 4)
    one, other = (
        rt.stability.block_cushions(
            nn.Sequential(layers[0], nn.SiLU(inplace=inplace), layers[1]), x, blocks=["1"]
        )
        for inplace in (True, False)
    )
    assert torch.equal(one.values, other.values) and not one.values.isnan().any()


def test_a_map_is_checked_on_two_samples_before_it_is_cut():
    net, seen, x = Wrapped(small_net()), [], noise(5, 2, 5, 5)
    net.net[0].register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    (batch,) = Data.of(x, like=net, targets=False)
    assert torch.equal(map_between(net, batch, "net.1", None).z, net.net[:1](x))
    assert len(seen) == 3 and torch.equal(seen[0], x[:2]) and torch.equal(seen[1], x)


def test_intervals_cover_the_exact_value():
    """Over 60 seeds and 4 samples, 20 probes: the confidence within 2 % up to chance."""
    seeds = 60
    net, x = rt.simplified_net(8), noise(4, 3, 4, 4)
    cut = {"start": "conv1", "stop": "conv3"}
    exact = rt.interlayer_cushions(net, x, **cut, method="exact").values
    inside, values, errors = {0.5: 0, 0.9: 0, 0.95: 0}, [], []
    for seed in range(seeds):
        found = rt.interlayer_cushions(
            net, x, **cut, method="probes", probes=20, generator=seed, batch=80
        )
        for confidence in inside:
            low, high = found.intervals(confidence).unbind(2)
            inside[confidence] += int(((low <= exact) & (exact <= high)).sum())
        values.append(found.values)
        errors.append(found.standard_errors)
    for confidence, count in inside.items():
        chance = (confidence * (1 - confidence) / (4 * seeds)) ** 0.5
        assert abs(count / (4 * seeds) - confidence) < 0.02 + 4 * chance
    # The errors are those that the values make; four samples share no probe.
    made = torch.stack(values).var(0).mean().sqrt()
    told = torch.stack(errors).square().mean().sqrt()
    assert told.item() == pytest.approx(made.item(), rel=4 / (2 * 4 * (seeds - 1)) ** 0.5)


def test_seeds_are_all_the_randomness_there_is():
    net, x = rt.simplified_net(8), noise(2, 3, 8, 8)
    runs = [
        rt.interlayer_cushions(net, x, start=2, stop=6, probes=5, generator=seed).values
        for seed in (0, 0, 1)
    ]
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])


def test_both_errors_of_the_mean_are_told_apart():
    net, x = rt.simplified_net(8), noise(8, 3, 8, 8)
    found = rt.interlayer_cushions(net, x, start=2, stop=6, probes=10)
    # Two samples without a value count nowhere.
    gone = [c.index_fill(1, torch.tensor([1, 5]), torch.nan)
            for c in (found.cushions, found.standard_errors)]  # fmt: skip
    found = replace(found, cushions=gone[0], standard_errors=gone[1])
    row = found.values[0][~found.values[0].isnan()]
    assert len(row) == 6
    assert found.mean.item() == pytest.approx(row.mean().item(), rel=1e-12)
    assert found.sampling_error.item() == pytest.approx((row.std() / 6**0.5).item(), rel=1e-12)
    errors = found.standard_errors[0].nan_to_num(0.0)
    assert found.probe_error.item() == pytest.approx(errors.norm().item() / 6, rel=1e-12)
    assert "probe error" in str(found) and "10 probes" in str(found)
    for name in ("mean", "sampling_error", "probe_error"):
        assert found.frame()[name].tolist() == getattr(found, name).tolist()


# -- laws ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("identity", ["plain", "residual"])
def test_jacobian_times_input_is_the_output_without_bias(identity):
    """J x is the output where every layer is linear or ReLU without bias."""
    net = rt.simplified_net(8, identity=identity)[:-1]  # their biases start at zero
    z = noise(2, 3, 8, 8)
    value, product = jacobian_product(net, z, z)
    assert relative_error(product, value.detach()) < EXACT


def test_the_identity_has_the_cushion_of_one_channel():
    """J = I gives 1 / sqrt(channels) for kappa "spatial", 1 for "total"."""
    x = noise(3, 4, 5, 5)
    for kappa, value in (("spatial", 0.5), ("total", 1.0), ("none", 0.1)):
        found = rt.interlayer_cushions(
            nn.Sequential(nn.Identity()), x, start=0, kappa=kappa, method="exact"
        )
        assert found.values[0].tolist() == pytest.approx([value] * 3, rel=EXACT)


class Constant(nn.Module):
    """Ignores its input; its output may depend on a parameter."""

    def __init__(self, *, parameter):
        super().__init__()
        self.value = nn.Parameter(torch.arange(3.0), requires_grad=parameter)

    def forward(self, x):
        return self.value.expand(len(x), 3)


@pytest.mark.parametrize("module", [
    nn.Softplus(), nn.Sequential(nn.Linear(4, 3), nn.Tanh()), nn.Linear(4, 3),
    Constant(parameter=True), Constant(parameter=False),
])  # fmt: skip
def test_two_gradients_replace_a_missing_forward_rule(module):
    module.double()
    z, v = noise(3, 4), noise(3, 4, seed=1)
    for one, other in zip(
        jacobian_product(module, z, v), _by_two_gradients(module, z, v), strict=True
    ):
        assert relative_error(other.detach(), one.detach()) < EXACT
    assert not z.requires_grad


@pytest.mark.parametrize("parameter", [True, False])
@pytest.mark.parametrize("method", ["exact", "probes"])
def test_a_map_that_ignores_its_input_has_no_cushion(method, parameter):
    net = nn.Sequential(Constant(parameter=parameter))
    found = rt.interlayer_cushions(net, noise(3, 4), start=0, method=method)
    assert found.sides == ("out",) and found.values.isnan().all()


class Cube(torch.autograd.Function):
    """Has no derivative in forward mode."""

    @staticmethod
    def forward(context, x):
        context.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(context, cotangent):
        return 3 * cotangent * context.saved_tensors[0] ** 2


class Cubes(nn.Module):
    def forward(self, x):
        return Cube.apply(x)


def test_operations_without_a_forward_derivative_have_a_jacobian():
    net, x = nn.Sequential(nn.Linear(4, 6), Cubes(), nn.Linear(6, 3)), noise(3, 4)
    found = rt.interlayer_cushions(net, x, start=0, method="exact", kappa="none")
    jacobians = (net[2].weight * 3 * net[0](x)[:, None] ** 2) @ net[0].weight
    ratio = (jacobians @ x[..., None]).flatten(1).norm(dim=1) / jacobians.flatten(1).norm(dim=1)
    assert relative_error(found.values[0], (ratio / x.norm(dim=1)).detach()) < EXACT


class Twice(nn.Module):
    """Calls one layer by a keyword, twice."""

    def __init__(self):
        super().__init__()
        self.before, self.layer = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return torch.tanh(self.layer(input=torch.tanh(self.layer(input=self.before(x)))))


def test_a_module_called_again_by_a_keyword_starts_at_its_first_call():
    net, x = Twice(), noise(3, 4)
    found = rt.interlayer_cushions(net, x, start="layer", method="exact")

    def behind(z):
        return torch.tanh(net.layer(torch.tanh(net.layer(z))))

    assert relative_error(found.values[0], oracle(behind, net.before(x), "spatial")) < EXACT
    stopped = rt.interlayer_cushions(net, x, start="before", stop="layer", method="exact")
    assert relative_error(stopped.values[0], oracle(net.before, x, "spatial")) < EXACT


class Several(nn.Module):
    """A block of three inputs, by position or by name; what is behind it starts at the first."""

    def __init__(self, names):
        super().__init__()
        self.names, self.before = names, nn.Linear(4, 4)
        self.block, self.behind = Three(), nn.Linear(4, 2)

    def forward(self, x):
        z = torch.tanh(self.before(x))
        given = dict(zip(("z", "other", "factor"), (z, z.exp(), x.square()), strict=True))
        named = {name: given.pop(name) for name in self.names}
        return self.behind(self.block(*given.values(), **named))


class Three(nn.Module):
    def forward(self, z, other, factor):
        return torch.sin(z) * factor + other


@pytest.mark.parametrize("stop", [None, "behind"])
@pytest.mark.parametrize("names", ["", ("factor",), ("other", "factor"), ("z", "factor", "other")])
def test_other_inputs_of_a_block_are_held_fixed(names, stop):
    net, x = Several(names), noise(3, 4)
    found = rt.interlayer_cushions(net, x, start="block", stop=stop, method="exact", batch=8)
    z, end = torch.tanh(net.before(x)).detach(), net.behind if stop is None else nn.Identity()
    values = [
        oracle(lambda v, z=z, x=x: end(net.block(v, z.exp(), x.square())), z[None], "spatial")
        for z, x in zip(z, x, strict=True)
    ]
    assert relative_error(found.values[0], torch.cat(values)) < EXACT


def test_attention_has_a_jacobian():
    net = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True).eval()
    z = noise(2, 3, 4)
    found = rt.interlayer_cushions(nn.Sequential(net), z, start=0, method="exact", kappa="total")
    with differentiable():
        assert relative_error(found.values[0], oracle(net, z, "total")) < EXACT


def test_inputs_of_zero_have_no_cushion():
    x = noise(3, 4)
    x[1] = 0
    found = rt.interlayer_cushions(nn.Sequential(nn.Linear(4, 3)), x, start=0)
    assert found.values.isnan().tolist() == [[False, True, False]]
    assert found.undefined.tolist() == [1] and not found.mean.isnan().any()


# -- BatchNorm -------------------------------------------------------------------------------------


def test_own_statistics_are_those_of_a_batch_of_one():
    net = small_net().train()
    net[1].weight.data.uniform_(0.5, 2)
    net[1].bias.data.normal_()
    net[1].eps = 0.1  # all that keeps J x from vanishing: too small, and J x is round-off
    x = noise(3, 2, 5, 5)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    found = rt.interlayer_cushions(net, x, start=0, stop=4, method="exact", batchnorm="batch")
    after = net.state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items()) and net[1].training
    assert found.batchnorm == "batch"
    own = nn.Sequential(net[0], nn.InstanceNorm2d(3, eps=0.1, affine=True), net[2], net[3]).eval()
    own[1].load_state_dict({"weight": net[1].weight, "bias": net[1].bias})
    assert relative_error(found.values[0], oracle(own, x, "spatial")) < EXACT


def test_two_places_are_enough_for_own_statistics():
    net, own = nn.Sequential(nn.BatchNorm1d(1, eps=0.1)), nn.InstanceNorm1d(1, eps=0.1)
    x = torch.tensor([[[0.3, -0.4]]])
    found = rt.interlayer_cushions(net, x, start=0, method="exact", batchnorm="batch")
    assert relative_error(found.values[0], oracle(own, x, "spatial")) < EXACT


def test_with_own_statistics_a_plain_block_does_not_see_the_scale():
    """f(ax) = f(x), so J x = 0 but for eps; the identity alone is left of a residual block."""
    x = noise(2, 3, 8, 8)
    plain, residual = (
        rt.stability.block_cushions(
            rt.full_net(8, shortcut=kind), x, batchnorm="batch", probes=4
        ).median
        for kind in (False, True)
    )
    assert float(plain.max()) < 1e-3 and float(residual.min()) > 30 * float(plain.max())


def test_a_net_in_train_mode_is_measured_in_eval_mode_by_default():
    net, x = rt.full_net(8).train(), noise(2, 3, 8, 8)
    found = rt.stability.block_cushions(net, x, probes=3)
    assert found.batchnorm == "eval" and net.training
    assert torch.equal(found.values, rt.stability.block_cushions(net.eval(), x, probes=3).values)


# -- refusals --------------------------------------------------------------------------------------


class Grown(nn.Module):
    """Grows by a share where samples are in company, as products round by the size of a batch."""

    def __init__(self, share):
        super().__init__()
        self.share = share

    def forward(self, x):
        return x * (1 + self.share * (len(x) > 2)) if self.share else x


@pytest.mark.parametrize(("dtype", "step"), [(torch.float64, 2.0**-26), (torch.float32, 2**-11.5)],
                         ids=str)  # fmt: skip
@pytest.mark.parametrize("sign", [1, -1])
def test_samples_depend_on_one_another_beyond_half_the_digits(dtype, step, sign):
    x = sign * torch.ones(3, 4, dtype=dtype)
    assert rt.interlayer_cushions(nn.Sequential(Grown(0.9 * step)).to(dtype), x, start=0)
    with pytest.raises(ValueError, match="the samples of a batch depend on one another"):
        rt.interlayer_cushions(nn.Sequential(Grown(1.1 * step)), x, start=0)


@pytest.mark.parametrize(("dtype", "step"), [(torch.float64, 2e-6), (torch.float32, 2**-11.5)],
                         ids=str)  # fmt: skip
@pytest.mark.parametrize("sign", [1, -1])
def test_inputs_change_with_the_batch_beyond_float32s_roundings(dtype, step, sign):
    x = sign * (1 + noise(5, 4).abs()).to(dtype)
    layer = nn.Linear(4, 2).to(dtype)
    rt.layer_cushions(nn.Sequential(Grown(0.9 * step), layer), x)  # any warning is an error
    with pytest.warns(UserWarning, match="'1' and 0 more layers for one sample depends on the oth"):
        rt.layer_cushions(nn.Sequential(Grown(1.1 * step), layer), x)


def test_tokens_that_change_with_the_batch_belong_to_no_sample():
    """By one and a half times what is let through."""
    x = 1 + noise(5, 3, 4).abs()
    net = nn.Sequential(Grown(3e-6), nn.Flatten(0, 1), nn.Linear(4, 2), nn.Unflatten(0, (-1, 3)))
    with pytest.raises(ValueError) as caught:
        rt.layer_cushions(net, x)
    assert str(caught.value) == (
        "net: Sequential has no linear layer to measure; 2: cannot tell which sample each row of "
        "its input belongs to, and depend on the other samples"
    )


def test_columns_of_interlayer_cushions_are_shown_with_their_errors():
    """By hand: 1 to 6 have the errors √(3.5 / 6) and √91 / 60, 1, 2, 3 and 5 √(35 / 12) / 2."""
    values = torch.tensor([[4.0, 3, 1, 5, 2, 6], [torch.nan, 1, 3, 2, torch.nan, 5]])
    found = rt.stability.InterlayerCushions(
        pieces=("a", "b"), cushions=values, standard_errors=values / 10, probes=(0, 7),
        sides=("in", "out"), kappa="none", batchnorm="batch",
    )  # fmt: skip
    assert [" ".join(line.split()) for line in str(found).splitlines()] == [
        "interlayer cushions of 6 samples: kappa none, BatchNorm batch",
        "layer undefined minimum q01 q05 median maximum mean sampling error probe error norm",
        "a 0 1 1.05 [0, 2] 1.25 [0, 3] 3.5 [1, 6] 6 3.5 0.7638 0.159 exact, by J v",
        "b 2 1 1.03 [0, 2] 1.15 [0, 2] 2.5 [0, inf] 5 2.75 0.8539 0.1561 7 probes, u J",
    ]
    low, high = found.intervals(0.5).unbind(2)
    width = 0.717558 * values[1] / 10  # Student's t with six degrees of freedom, three quarters
    torch.testing.assert_close(low[0], values[0])
    torch.testing.assert_close(high[0], values[0])
    torch.testing.assert_close(high[1] - values[1], width, rtol=1e-6, atol=0, equal_nan=True)
    torch.testing.assert_close(values[1] - low[1], width, rtol=1e-6, atol=0, equal_nan=True)


class Coupled(nn.Module):
    """Samples know a millionth of each other."""

    def forward(self, x):
        return x + 1e-6 * x.mean(0)


class Ending(nn.Module):
    """A layer that is called, one that is not, and a function of the output."""

    def __init__(self, function):
        super().__init__()
        self.layer, self.idle, self.sum = nn.Linear(5, 5), nn.Linear(5, 5), Sum()
        self.function = function

    def forward(self, x):
        return self.function(self.sum(self.layer(x), x))


class Named(Ending):
    """Gives one of two tensors by name."""

    def forward(self, x):
        return self.sum(self.layer(x), other=x)


class Squeezed(nn.Module):
    def forward(self, x):
        return x.squeeze()


class Sum(nn.Module):
    def forward(self, one, other):
        return one + other


@pytest.mark.parametrize(
    ("net", "arguments", "message"),
    [
        (
            lambda: Ending(torch.sum),
            {"start": "layer"},
            r"net: gives Tensor of shapes \(\) for 3 sa",
        ),
        (
            lambda: Ending(torch.argmax),
            {"start": "layer"},
            "net: gives Tensor of shapes none for 3",
        ),
        (
            lambda: Ending(lambda y: [y, y[0]]),
            {"start": "layer"},
            r"net: gives list of shapes \(3, 2, 5, 5\), \(2, 5, 5\) for 3 samples",
        ),
        (lambda: Ending(torch.relu), {"start": "idle"}, "start: 'idle' was not called on these da"),
        (
            lambda: Ending(torch.relu),
            {"start": "layer", "stop": "idle"},
            "stop: is not reached behind start in layer:idle",
        ),
        (lambda: Ending(torch.relu), {"blocks": ["idle"]}, "blocks: 'idle' was not called on thes"),
        (lambda: Ending(torch.relu), {"blocks": ["sum"]}, "blocks: 'sum' takes more than one tens"),
        (
            lambda: Named(torch.relu),
            {"blocks": ["sum"]},
            "blocks: 'sum' takes more than one tensor",
        ),
        (
            lambda: nn.Sequential(nn.Flatten(0), nn.Identity()),
            {"start": 1},
            r"start: the input of 1: is \(150,\) of torch.float64; needs real vectors",
        ),
        (
            lambda: nn.Sequential(nn.Flatten(0, 1)),
            {"start": 0},
            r"net: 0: gives \(6, 5, 5\) for a batch of 3; needs the samples along the first axis",
        ),
        (
            lambda: nn.Sequential(Squeezed()),
            {"start": 0},
            r"net: 0: gives \(2, 5, 5\) for a batch of 1; needs the samples along the first axis",
        ),
        (
            lambda: nn.Sequential(nn.Flatten(), nn.Linear(50, 1), Squeezed()),
            {"start": 0},
            r"net: 0: gives \(\) for a batch of 1; needs the samples along the first axis",
        ),
        (small_net, {"start": 9}, "start: got 9, the net has 7 layers"),
        (small_net, {"start": -8}, "start: got -8, the net has 7 layers"),
        (small_net, {"start": 0, "stop": 8}, "stop: got 8, the net has 7 layers"),
        (small_net, {"start": 7}, "stop: got None for start=7, needs a later layer"),
        (small_net, {"start": 3, "stop": 3}, "stop: got 3 for start=3, needs a later layer"),
        (small_net, {"start": "conv"}, "start: unknown name 'conv'"),
        (lambda: Wrapped(small_net()), {"start": 2}, "start: got 2 for Wrapped; needs the name"),
        (
            lambda: Wrapped(small_net()),
            {"start": "net.4", "stop": "net.1"},
            "stop: is not reached behind start in net.4:net.1",
        ),
        (small_net, {"start": 0, "kappa": "all"}, "kappa: unknown name"),
        (small_net, {"start": 0, "method": "fast"}, "method: unknown name"),
        (small_net, {"start": 0, "probes": 1}, "probes: got 1, needs at least 2"),
        (small_net, {"start": 0, "batchnorm": "train"}, "batchnorm: unknown name"),
        (small_net, {"start": 5, "batchnorm": "batch"}, None),
        (
            lambda: nn.Sequential(nn.BatchNorm2d(2, track_running_stats=False)),
            {"start": 0},
            "net: in 0: the samples of a batch depend on one another",
        ),
        (lambda: nn.Sequential(Coupled()), {"start": 0}, "net: in 0: the samples of a batch dep"),
        (
            lambda: nn.Sequential(nn.Flatten(), nn.Linear(50, 4), nn.BatchNorm1d(4)),
            {"start": 1, "batchnorm": "batch"},
            "batchnorm: 'batch' takes the statistics of one sample",
        ),
    ],
    ids=lambda value: "" if value is None or callable(value) else str(value)[:24],
)
def test_refusals(net, arguments, message):
    x = noise(3, 2, 5, 5)
    call = rt.stability.block_cushions if "blocks" in arguments else rt.interlayer_cushions
    if message is None:
        call(net(), x, **arguments)
        return
    with pytest.raises(ValueError, match=f"^{message}"):
        call(net(), x, **arguments)


def test_words_are_no_input_of_a_jacobian():
    net = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 3))
    with pytest.raises(ValueError, match=r"^start: the input of 0: is \(6, 2\) of torch.int64"):
        rt.interlayer_cushions(net, torch.arange(12).view(6, 2) % 5, start=0)
