"""Norms and sharpness against explicit matrices, sums over paths, and quadratics."""

import itertools
import math

import pytest
import torch
from tolerances import relative_error
from torch import nn

import resid_theory as rt
from resid_theory import stability

LANCZOS = 1e-9  # what Lanczos is asked for, with room


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def matrix(layer, size):
    """The dense map of a layer without its bias."""
    zero = torch.zeros(1, *size)
    units = torch.eye(zero.numel()).view(-1, *size)
    return (layer(units) - layer(zero)).flatten(1).T.detach()


LAYERS = {
    "linear": (lambda: nn.Linear(5, 9), (5,)),
    "wide linear": (lambda: nn.Linear(90, 80), (90,)),
    "conv": (lambda: nn.Conv2d(3, 4, 3, padding=1), (3, 6, 6)),
    "strided circular": (
        lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1, padding_mode="circular"),
        (4, 8, 8),
    ),
    "dilated groups": (lambda: nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=2), (4, 7, 7)),
    "residual": (lambda: rt.simplified_net(8, identity="residual")[2], (16, 5, 5)),
    "explicit": (lambda: rt.simplified_net(8, identity="explicit")[6], (16, 6, 6)),
}


@pytest.mark.parametrize("make, size", LAYERS.values(), ids=LAYERS)
def test_spectral_norm_is_the_largest_singular_value(make, size):
    layer = make()
    exact = torch.linalg.svdvals(matrix(layer, size))[0].item()
    assert stability.spectral_norm(layer, size) == pytest.approx(exact, rel=LANCZOS)


def test_a_norm_met_several_times_is_found():
    """A circular convolution with one tap has all singular values equal."""
    layer = nn.Conv2d(8, 8, 1)
    nn.init.orthogonal_(layer.weight.data.view(8, 8))
    assert stability.spectral_norm(layer, (8, 9, 9)) == pytest.approx(1, rel=LANCZOS)


@pytest.mark.parametrize("identity", ["plain", "residual"])
def test_norms_of_all_layers(identity):
    net, x = rt.simplified_net(8, identity=identity), draw(1, 3, 5, 5)
    start = rt.simplified_net(8, identity=identity, generator=1)
    found = stability.layer_norms(net, x, initial=start)
    sizes = [net[:k](x).shape[1:] for k, m in enumerate(net) if hasattr(m, "weight")]
    layers = [m for m in net if hasattr(m, "weight")]
    begun = [m for m in start if hasattr(m, "weight")]
    for row, (layer, size, other) in enumerate(zip(layers, sizes, begun, strict=True)):
        dense = matrix(layer, size)
        assert found.frobenius[row].item() == pytest.approx(dense.norm().item(), rel=1e-12)
        singular = torch.linalg.svdvals(dense)
        assert found.spectral[row].item() == pytest.approx(singular[0].item(), rel=LANCZOS)
        rank = (singular.square().sum() / singular[0].square()).item()
        assert found.stable_rank[row].item() == pytest.approx(rank, rel=1e-8)
        change = (layer.weight - other.weight).detach()
        assert found.distance[row].item() == pytest.approx(change.norm().item(), rel=1e-12)
        rows = change.flatten(1).norm(dim=1).sum().item()
        assert found.distance_21[row].item() == pytest.approx(rows, rel=1e-12)
    assert found.width == 16 * 5 * 5 and not found.not_covered


def test_spectral_products_as_the_papers_write_them():
    net, start = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)), None
    start = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    found = stability.layer_norms(net, draw(1, 4), initial=start)
    a = [torch.linalg.matrix_norm(net[k].weight, 2) for k in (0, 2)]
    change = [(net[k].weight - start[k].weight).norm(dim=1).sum() for k in (0, 2)]
    ratios = sum((c / s) ** (2 / 3) for c, s in zip(change, a, strict=True))
    bartlett = (a[0] * a[1] * ratios**1.5 / 0.5).item()
    assert found.log_bartlett(0.5) == pytest.approx(math.log(bartlett), rel=1e-9)
    ranks = sum(net[k].weight.norm() ** 2 / s**2 for k, s in zip((0, 2), a, strict=True))
    inside = 2**2 * 6 * math.log(2 * 6) * (a[0] * a[1]) ** 2 * ranks / (0.5**2 * 100)
    assert found.log_neyshabur(0.5, 100) == pytest.approx(math.log(inside.sqrt().item()), rel=1e-9)


def test_norms_of_other_peoples_modules_and_no_trace():
    net = rt.full_net(8).train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    found = stability.layer_norms(net, draw(2, 3, 8, 8))
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items()) and net.training
    assert "block2.branch.conv1" in found.layers and "bn0" in found.not_covered
    assert found.distance.isnan().all() and math.isnan(found.log_bartlett(1.0))
    assert "stable rank" in str(found)


def test_path_norm_is_a_sum_over_paths():
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 2))
    layers = [net[k] for k in (0, 2, 4)]
    total = 0.0
    for path in itertools.product(range(2), range(3), range(2), range(2)):
        product = 1.0
        for layer, (i, o) in zip(layers, itertools.pairwise(path), strict=True):
            product *= layer.weight[o, i].item()
        total += product**2
    for first in range(3):  # paths that begin at a bias
        widths = [layers[first].out_features] + [m.out_features for m in layers[first + 1 :]]
        for path in itertools.product(*map(range, widths)):
            product = layers[first].bias[path[0]].item()
            for layer, (i, o) in zip(layers[first + 1 :], itertools.pairwise(path), strict=True):
                product *= layer.weight[o, i].item()
            total += product**2
    assert stability.path_norm(net, (2,)) == pytest.approx(total**0.5, rel=1e-12)


def test_path_norm_of_a_net_and_of_what_it_folds_into():
    net = rt.diracnet(10)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.uniform_(0.5, 2)
            module.running_mean.normal_()
    one, other = (
        stability.path_norm(net, (3, 16, 16)),
        stability.path_norm(rt.fold(net.eval()), (3, 16, 16)),
    )
    assert one == pytest.approx(other, rel=1e-10)


def test_path_norm_knows_shortcuts_and_refuses_what_bends():
    residual, plain = (
        stability.path_norm(net, (3, 8, 8))
        for net in (rt.simplified_net(8, identity="residual"),
                    rt.to_plain(rt.simplified_net(8, identity="residual")))
    )  # fmt: skip
    assert residual == pytest.approx(plain, rel=1e-12)
    assert stability.path_norm(rt.full_net(8), (3, 8, 8)) > 0
    with pytest.raises(ValueError, match="^net: '1' is a Tanh; a path norm needs"):
        stability.path_norm(nn.Sequential(nn.Linear(2, 2), nn.Tanh()), (2,))


def test_sharpness_of_a_quadratic_is_known():
    """At W = 0 with y = 0, E 1/2 |N x|^2 = sigma^2 k mean|x|^2 / 2: sigma follows."""
    net = nn.Linear(3, 4, bias=False)
    nn.init.zeros_(net.weight)
    x = draw(50, 3)
    found = stability.pac_bayes_sharpness(
        net, "square", (x, torch.zeros(50, 4)), increase=0.1, draws=400, tolerance=1e-3
    )
    expected = math.sqrt(0.2 / (4 * x.square().sum(1).mean().item()))
    # A mean of 400 quadratic forms of 12 normals, at worst of rank 4.
    assert found == pytest.approx(expected, rel=2 * math.sqrt(2 / (4 * 400)))
    assert not net.weight.any()


def test_sharpness_takes_loaders_and_leaves_no_trace():
    net = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3)).train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    x, y = draw(10, 4), torch.arange(10) % 3
    rng = torch.get_rng_state()
    one = stability.pac_bayes_sharpness(net, "cross_entropy", (x, y), draws=3)
    two = stability.pac_bayes_sharpness(
        net, "cross_entropy", [(x[:7], y[:7]), (x[7:], y[7:])], draws=3
    )
    assert one == pytest.approx(two, rel=1e-9) and one > 0
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items()) and net.training
    assert torch.equal(torch.get_rng_state(), rng)


def test_a_net_that_no_noise_moves_is_infinitely_flat():
    net = nn.Linear(3, 2)
    data = (torch.zeros(4, 3), torch.zeros(4, 2))
    flat = stability.pac_bayes_sharpness(net, lambda output, _: 0 * output.mean(), data, draws=2)
    assert flat == math.inf


def test_distances_are_measured_between_equal_nets_only():
    with pytest.raises(ValueError, match="^initial: has no layer 'conv0'"):
        stability.layer_norms(rt.simplified_net(8), draw(1, 3, 8, 8), initial=nn.Linear(2, 2))
    with pytest.raises(ValueError, match="^initial: has no layer"):
        stability.layer_norms(nn.Linear(2, 3), draw(1, 2), initial=nn.Linear(3, 3))
    with pytest.raises(ValueError, match="^linear: got ReLU"):
        stability.spectral_norm(nn.ReLU(), (2,))


def test_equal_rows_of_kernel_norms():
    net, x = rt.simplified_net(8), draw(1, 3, 8, 8)
    found = stability.layer_norms(net, x)
    kernels = torch.stack([m.weight.norm() for m in net if hasattr(m, "weight")]).detach()
    assert relative_error(found.kernel, kernels) < 1e-12
