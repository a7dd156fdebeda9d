"""One net in several forms: outputs, gradients and training against the explicit shortcut."""

import copy
from functools import partial

import oracles
import pytest
import torch
from tolerances import EPS, assert_same, relative_error
from torch import nn
from torch.nn.utils import prune

import resid_theory as rt
from resid_theory.identity import AddIdentity, id_mask, identity_removed, with_identity
from resid_theory.networks import Block, IdentityShortcut

SAME = 1e-12
"""What equivalent nets promise in float64: some 1e3 roundings a layer and path, none amplified."""


def scatter_statistics(net, generator, size=16):
    """BatchNorm whose statistics are those of noise, with weights that differ by channel."""
    for norm in (m for m in net.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.momentum = 1.0
        with torch.no_grad():
            norm.weight.uniform_(0.5, 1.5, generator=generator)
            norm.bias.normal_(0, 0.3, generator=generator)
    dtype = next(net.parameters()).dtype
    with torch.no_grad():
        net.train()(torch.randn(8, 3, size, size, generator=generator, dtype=dtype))
    return net.eval()


def images(generator, batch=2, size=16):
    return torch.randn(batch, 3, size, size, generator=generator)


# --- plain against the explicit residual net


def pick(choices, generator):
    return choices[int(torch.randint(len(choices), (), generator=generator))]


def random_layer(axes, inputs, generator):
    """A layer with an identity kernel, its geometry for the oracle, and its activation."""
    geometry = {"groups": pick([g for g in (1, 1, 2, 3) if inputs % g == 0], generator)}
    outputs = inputs * pick([1, 1, 2], generator)
    if axes == 0:
        return nn.utils.skip_init(nn.Linear, inputs, outputs), {}
    geometry |= {"stride": pick([1, 1, 2], generator), "dilation": pick([1, 2], generator)}
    side = pick([1, 3, 5], generator)
    tap = pick(sorted({0, side // 2}), generator)  # also off the centre: outputs are cropped
    geometry["padding"] = tap * geometry["dilation"]
    conv = [nn.Conv1d, nn.Conv2d, nn.Conv3d][axes - 1]
    return nn.utils.skip_init(conv, inputs, outputs, side, **geometry), geometry


def survives(layer, size, parts):
    """Whether the layers before leave enough of the inputs for this kernel."""
    for part in [*parts[::2], layer]:
        reach = part.dilation[0] * (part.kernel_size[0] - 1) + 1
        size = (size + 2 * part.padding[0] - reach) // part.stride[0] + 1
        if size < 1:
            return False
    return True


def random_net(seed):
    """A residual net, the oracle's arguments for it, and inputs that survive its cropping."""
    generator = torch.Generator().manual_seed(seed)
    axes, width = seed % 4, pick([1, 2, 3], generator)
    x = torch.randn(3, width, *[{1: 40, 2: 30, 3: 21}.get(axes, 0)] * axes, generator=generator)
    parts, geometries = [], []
    for _ in range(pick([1, 2, 3], generator)):
        layer, geometry = random_layer(axes, width, generator)
        if axes and not survives(layer, x.shape[2], parts):
            break
        for p in layer.parameters():
            nn.init.normal_(p, std=0.3, generator=generator)
        width = layer.weight.shape[0]
        parts += [with_identity(layer, "residual"), pick([nn.ReLU(), nn.Tanh()], generator)]
        geometries.append(geometry)
    return nn.Sequential(*parts), geometries, x


def explicit(net, geometries, tensors, x):
    """conv(x, V) + b + Id(x) and the activation, layer by layer."""
    for number, geometry in enumerate(geometries):
        x = net[2 * number + 1](oracles.residual_layer(x, *tensors[number], **geometry))
    return x


def branches(layers):
    """V and b of residual layers, as leaves."""
    pairs = [(identity_removed(layer), layer.bias) for layer in layers]
    return [tuple(t.detach().clone().requires_grad_() for t in pair) for pair in pairs]


def assert_same_function(found, expected, ours, theirs):
    """Equal outputs, and equal gradients at tensors of the two."""
    assert relative_error(found, expected) < SAME
    cotangent = torch.linspace(-1, 1, found.numel()).view_as(found)
    gradients, exacts = (
        torch.autograd.grad(*pair, cotangent) for pair in ((found, ours), (expected, theirs))
    )
    # Gradients are sums that may cancel: their round-off is relative to the net's largest one.
    scale = max(float(exact.abs().max()) for exact in exacts)
    for measured, exact in zip(gradients, exacts, strict=True):
        assert measured.shape == exact.shape
        assert float((measured - exact).abs().max()) <= SAME * scale


@pytest.mark.parametrize("seed", range(40))
def test_plain_nets_against_three_terms(seed):
    net, geometries, x = random_net(seed)
    tensors, x = branches(net[::2]), x.requires_grad_()
    expected = explicit(net, geometries, tensors, x)
    plain = rt.to_plain(net)
    assert not any(hasattr(layer, "parametrizations") for layer in plain)
    ours = [p for layer in plain[::2] for p in (layer.weight, layer.bias)]
    theirs = [t for pair in tensors for t in pair]
    assert_same_function(plain(x), expected, [x, *ours], [x, *theirs])


@pytest.mark.parametrize("depth", [20, 44])
def test_simplified_nets_against_three_terms(generator, depth):
    residual = rt.simplified_net(depth, identity="residual")
    tensors = branches([m for m in residual if isinstance(m, nn.Conv2d)][1:])
    ends = [(m.weight.detach(), m.bias.detach()) for m in (residual.conv0, residual.fc)]
    x = images(generator, size=32).requires_grad_()
    expected = oracles.simplified_residual_net(x, ends[0], tensors, ends[1])
    plain = rt.to_plain(residual)
    ours = [p for n in range(1, depth - 1) for p in plain.get_submodule(f"conv{n}").parameters()]
    theirs = [t for pair in tensors for t in pair]
    assert_same_function(plain(x), expected, [x, *ours], [x, *theirs])


@pytest.mark.parametrize(
    "identity", ["residual", "explicit", "dominant", "dominant_half", "dominant_upper"]
)
def test_gap_of_forms(generator, identity):
    net = rt.simplified_net(20, identity=identity)
    gap = rt.check_equivalence(net, rt.to_plain(net), images(generator))
    assert 0 <= gap.largest < SAME
    # V of a dominant layer has fewer entries than the plain weight
    assert (gap.gradients is None) is identity.startswith("dominant")


# --- back and forth


@pytest.mark.parametrize("depth", [8, 20])
def test_there_and_back(depth):
    plain = rt.simplified_net(depth)
    residual = rt.to_residual(plain)
    again = rt.to_plain(residual)
    # 1 removed and added: one rounding of a number up to 2 each
    for name, p in plain.named_parameters():
        torch.testing.assert_close(again.get_parameter(name), p, rtol=0, atol=2 * EPS)
    back = rt.to_residual(again)
    masks = id_mask(residual)
    for (name, a), (_, b) in zip(residual.named_parameters(), back.named_parameters(), strict=True):
        entries = masks.get(name, torch.zeros(a.shape, dtype=torch.bool))
        assert torch.equal(a[~entries], b[~entries])
        assert not entries.any() or float((a - b).detach()[entries].abs().max()) <= 1.2e-16


def test_explicit_and_residual_share_v():
    explicit_net = rt.simplified_net(8, identity="explicit")
    residual = rt.to_residual(explicit_net)
    back = rt.to_residual(residual, explicit=True)
    assert_same(back.state_dict(), explicit_net.state_dict())
    for number in range(1, 7):
        v = residual.get_submodule(f"conv{number}").parametrizations.weight.original
        assert_same(v, explicit_net.get_submodule(f"conv{number}").layer.weight)


@pytest.mark.parametrize(
    "convert",
    [rt.to_plain, partial(rt.to_residual, explicit=True), rt.fold],
    ids=["to_plain", "to_residual", "fold"],
)
def test_the_original_is_untouched(generator, convert):
    net = rt.simplified_net(8, identity="residual").eval()
    x = images(generator)
    state, before = copy.deepcopy(net.state_dict()), net(x).detach()
    classes = [type(m) for m in net]
    rng = torch.get_rng_state()
    new = convert(net)
    with torch.no_grad():
        for p in new.parameters():
            p.zero_()
    assert [type(m) for m in net] == classes
    assert_same(net.state_dict(), state)
    assert_same(net(x).detach(), before)
    assert torch.equal(torch.get_rng_state(), rng)
    net.conv1.weight.sum().backward()  # still parametrized and trained


def test_conversions_keep_modes_and_frozen_weights():
    net = rt.simplified_net(8, identity="residual").eval()
    for p in net.conv2.parameters():
        p.requires_grad_(False)
    plain = rt.to_plain(net)
    assert not plain.training and not plain.conv1.training
    assert not plain.conv2.weight.requires_grad and plain.conv1.weight.requires_grad
    for explicit in (False, True):
        new = rt.to_residual(plain, explicit=explicit)
        assert not any(module.training for module in new.modules())


def test_a_converted_net_can_be_pickled(tmp_path):
    plain = rt.to_plain(rt.simplified_net(5, identity="residual"))
    torch.save(plain, tmp_path / "net.pt")
    assert len(torch.load(tmp_path / "net.pt", weights_only=False)) == len(plain)


@pytest.mark.parametrize("form", ["residual", "explicit"])
def test_a_layer_used_twice_stays_one_layer(generator, form):
    one = nn.Linear(3, 3)
    one = AddIdentity(one) if form == "explicit" else with_identity(one, form)
    net = nn.Sequential(one, nn.ReLU(), one)
    plain = rt.to_plain(net)
    assert plain[0] is plain[2] and type(plain[0]) is not AddIdentity
    x = torch.randn(4, 3, generator=generator)
    assert rt.check_equivalence(net, plain, x).largest < SAME
    back = rt.to_residual(plain, ["0"])
    assert back[0] is back[2]
    assert rt.check_equivalence(net, back, x).largest < SAME


def test_your_own_net_gets_its_inner_layers():
    net = nn.Sequential(nn.Linear(5, 3), nn.Tanh(), nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2))
    residual = rt.to_residual(net)
    assert list(id_mask(residual)) == ["2.parametrizations.weight.original"]
    assert rt.check_equivalence(net, residual, torch.ones(2, 5)).largest < SAME


# --- training


TINY = 4  # channels; two layers, one of them doubling


def tiny_residual():
    generator = torch.Generator().manual_seed(3)
    first, second = nn.Conv2d(TINY, TINY, 3, padding=1), nn.Conv2d(TINY, 2 * TINY, 3, 2, 1)
    net = nn.Sequential(
        with_identity(first, "residual"), nn.ReLU(), with_identity(second, "residual"), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * TINY, 3),
    )  # fmt: skip
    for p in net.parameters():
        nn.init.normal_(p, std=0.1, generator=generator)
    x = torch.randn(16, TINY, 6, 6, generator=generator)
    return net, x, torch.randint(3, (16,), generator=generator)


def optimizer(name, lr, **settings):
    return partial(getattr(torch.optim, name), lr=lr, weight_decay=0.05, **settings)


OPTIMIZERS = {
    "sgd": optimizer("SGD", 0.05),
    "momentum": optimizer("SGD", 0.02, momentum=0.9),
    "dampening": optimizer("SGD", 0.05, momentum=0.9, dampening=0.5),
    "nesterov": optimizer("SGD", 0.02, momentum=0.9, nesterov=True),
    "maximize": optimizer("SGD", 0.001, maximize=True),
    "adam": optimizer("Adam", 0.005),
    "amsgrad": optimizer("Adam", 0.005, amsgrad=True),
    "adamw": optimizer("AdamW", 0.005),
    "rmsprop": optimizer("RMSprop", 0.002),
    "rmsprop-momentum": optimizer("RMSprop", 0.001, momentum=0.9, centered=True),
    "adagrad": optimizer("Adagrad", 0.01),
    "nadam-decoupled": optimizer("NAdam", 0.005, decoupled_weight_decay=True),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_of_training(name):
    net, x, y = tiny_residual()
    pair, settings = (net, rt.to_plain(net)), {"loss": "cross_entropy", "steps": 10}
    settings |= {"optimizer": OPTIMIZERS[name]}
    corrected = rt.check_equivalence(*pair, (x, y), **settings)
    assert corrected.steps.shape == (10,)
    assert corrected.largest < SAME
    free = rt.check_equivalence(*pair, (x, y), correct=False, **settings)
    # The slowest decay takes 0.05 times 0.001 a step from an identity, the largest entry is 1.3.
    assert free.steps[-1] > 10 * 2.5e-5


@pytest.mark.parametrize("name", ["sgd", "momentum", "adam"])
def test_training_of_three_terms_with_the_penalty_in_the_cost(name):
    """The paper's cost, R + (lambda/2) |tau(theta)|^2, written out and decayed by nobody else."""
    net, x, y = tiny_residual()
    plain = rt.to_plain(net)
    tensors = branches([net[0], net[2]])
    head = [p.detach().clone().requires_grad_() for p in net[6].parameters()]
    leaves = [t for group in (*tensors, head) for t in group]
    kernels = [
        oracles.identity_kernel_by_loops(v.shape, rule="repeat", taps=(1, 1)) for v, _ in tensors
    ]
    ours, theirs = OPTIMIZERS[name](plain.parameters()), OPTIMIZERS[name](leaves)
    decay = theirs.param_groups[0]["weight_decay"]
    theirs.param_groups[0]["weight_decay"] = 0.0
    for _ in range(30):
        z = torch.relu(oracles.residual_layer(x, *tensors[0], padding=1))
        z = torch.relu(oracles.residual_layer(z, *tensors[1], stride=2, padding=1))
        risk = nn.functional.cross_entropy(z.mean((2, 3)) @ head[0].T + head[1], y)
        moved = [v + e for (v, _), e in zip(tensors, kernels, strict=True)]
        rest = [tensors[0][1], tensors[1][1], *head]
        cost = risk + decay / 2 * sum((t**2).sum() for t in (*moved, *rest))
        theirs.zero_grad()
        cost.backward()
        theirs.step()
        ours.zero_grad()
        nn.functional.cross_entropy(plain(x), y).backward()
        ours.step()
    for layer, (v, bias), e in zip((plain[0], plain[2]), tensors, kernels, strict=True):
        assert relative_error(layer.weight, v + e) < SAME
        assert relative_error(layer.bias, bias) < SAME


def test_training_leaves_the_nets_alone():
    net, x, y = tiny_residual()
    before = copy.deepcopy(net.state_dict())
    settings = {"loss": "cross_entropy", "steps": 2, "optimizer": OPTIMIZERS["sgd"]}
    rt.check_equivalence(net, net, (x, y), **settings)
    assert_same(net.state_dict(), before)
    assert all(p.grad is None for p in net.parameters())


# --- folding


FOLDABLE = {
    "dirac": lambda: rt.diracnet(16),
    "dirac-eq4": lambda: rt.diracnet(16, normalize=False, init="kaiming"),
    "dirac-uniform": lambda: rt.diracnet(10, bn_init="uniform"),
    "dirac-plain": lambda: rt.diracnet(16, identity="plain"),
    "dirac-wide": lambda: rt.diracnet(10, width=2),
    "ImageNet": lambda: rt.diracnet_imagenet(18)[:30],  # its own begin, and two groups of four
    "full-plain": lambda: rt.full_net(14, shortcut=False),
    "simplified": lambda: rt.simplified_net(8, identity="residual"),
}
CHAIN = (nn.Conv2d, nn.ReLU, nn.MaxPool2d, nn.AdaptiveAvgPool2d, nn.Flatten, nn.Linear)


@pytest.mark.parametrize("name", FOLDABLE)
def test_folded_nets(generator, name):
    size = 32 if name == "ImageNet" else 16
    net = scatter_statistics(FOLDABLE[name](), generator, size)
    x = images(generator, size=size)
    torch.set_default_dtype(torch.float32)  # of which a net in float64 takes no notice
    folded = rt.fold(net)
    leaves = [m for m in folded.modules() if not list(m.children())]
    assert {type(m) for m in leaves} <= set(CHAIN)
    assert not any("parametrizations" in key for key in folded.state_dict())
    gap = rt.check_equivalence(net, folded, x)
    assert gap.outputs > 0 or name == "simplified"
    assert gap.largest < SAME


def test_folded_weights_are_computed_in_float64_and_rounded_once(generator):
    torch.set_default_dtype(torch.float32)
    conv, norm = nn.Conv2d(6, 4, 3, 2, 1, 2, 2), nn.BatchNorm2d(4)
    for tensor in (norm.running_var, norm.weight, norm.bias, norm.running_mean):
        nn.init.uniform_(tensor, 0.3, 3, generator=generator)
    new = rt.fold(nn.Sequential(conv, norm).eval())[0]
    assert repr(new) == repr(conv)
    W, b, gamma, beta, mean, variance = (
        t.detach().double() for t in (conv.weight, conv.bias, norm.weight, norm.bias,
                                      norm.running_mean, norm.running_var)
    )  # fmt: skip
    scale = gamma / (variance + norm.eps).sqrt()
    assert torch.equal(new.weight, (scale[:, None, None, None] * W).float())
    assert torch.equal(new.bias, (scale * (b - mean) + beta).float())


def test_blocks_fold_inside(generator):
    net = scatter_statistics(rt.full_net(8, doubling="proj"), generator)
    folded = rt.fold(net)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    assert sum(isinstance(m, Block) for m in folded) == 3
    assert rt.check_equivalence(net, folded, images(generator)).largest < SAME


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("affine", [True, False], ids=["affine", "not affine"])
def test_other_layers_fold(generator, bias, affine):
    linear, norm = nn.Linear(3, 4, bias=bias), nn.BatchNorm1d(4, affine=affine)
    norm.running_mean.normal_(generator=generator)
    norm.running_var.uniform_(0.5, 2, generator=generator)
    net = nn.Sequential(linear, norm).eval()
    folded = rt.fold(net)
    assert repr(folded[0]) == repr(nn.Linear(3, 4))
    gap = rt.check_equivalence(net, folded, torch.randn(5, 3, generator=generator))
    # not gap.gradients: a folded weight is another function of the parameters
    assert max(gap.outputs, gap.input_gradient) < SAME
    for new in (rt.absorb(nn.Sequential(Block(net, nn.Linear(3, 4)))), copy.deepcopy(folded)):
        with pytest.raises(ValueError, match="x: got 3 axes, needs \\(batch, channels\\)"):
            new(torch.randn(5, 4, 3, generator=generator))  # there the norm's axis is another


# --- blocks of several convolutions, and conv-BN


@pytest.mark.parametrize("doubling", ["pad", "dup", "proj"])
def test_two_conv_blocks_widen(generator, doubling):
    net, x = scatter_statistics(rt.full_net(8, doubling=doubling), generator), images(generator)
    torch.set_default_dtype(torch.float32)  # of which a net in float64 takes no notice
    plain = rt.to_plain(net)
    assert len(plain) == len(net) and not any(isinstance(m, Block) for m in plain.modules())
    assert plain.block1.conv1.out_channels == 16 + 16  # C_mid + C
    assert plain.block2.conv2.in_channels == 32 + 16
    assert rt.check_equivalence(net, plain, x).largest < SAME


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_blocks_of_any_number_of_convolutions(generator, count):
    branch = [nn.Conv2d(2, 4, 3, stride=2, padding=1)]
    for _ in range(count - 1):
        branch += [nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1, bias=False)]
    block = Block(nn.Sequential(*branch), IdentityShortcut(4, 2, "repeat"), after=nn.ReLU())
    net = nn.Sequential(nn.ReLU(), block)
    x = torch.randn(2, 2, 8, 8, generator=generator)
    plain = rt.to_plain(net)
    assert len(plain[1]) == 2 * count
    assert rt.check_equivalence(net, plain, x).largest < SAME
    twice = torch.cat([torch.relu(x)[:, :, ::2, ::2]] * 2, dim=1)
    expected = torch.relu(nn.Sequential(*branch)(torch.relu(x)) + twice)
    assert relative_error(plain(x), expected) < SAME


@pytest.mark.parametrize("name", ["groups", "reflected", "kernel", "functional", "meta"])
def test_blocks_of_other_layers(generator, name):
    options = {"groups": {"groups": 2}, "reflected": {"padding_mode": "reflect"}}.get(name, {})
    first, last = nn.Conv2d(2, 4, 3, padding=1, **options), nn.Conv2d(4, 2, 3, padding=1)
    shortcut = nn.Conv2d(2, 2, 3, padding=1) if name == "kernel" else None
    block = Block(nn.Sequential(first, nn.ReLU(), last), shortcut, after=nn.ReLU())
    net = nn.Sequential(nn.Flatten(0, 0), Rectified(block) if name == "functional" else nn.ReLU(),
                        *[block] * (name != "functional"))  # fmt: skip
    x = torch.randn(2, 2, 6, 6, generator=generator)
    if name == "meta":
        shapes = {key: t.shape for key, t in rt.to_plain(net).state_dict().items()}
        found = rt.to_plain(net.to("meta")).state_dict()
        assert {key: t.shape for key, t in found.items()} == shapes
    else:
        assert relative_error(rt.to_plain(net)(x), net(x)) < SAME


class Rectified(nn.Module):
    """A block behind a ReLU that is no module."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, x):
        return self.block(torch.relu(x))


def test_a_layer_in_front_of_a_block_stays_there_and_one_layer_is_a_net():
    block, x = Block(nn.Linear(3, 3), before=nn.ReLU(), after=nn.Tanh()), torch.randn(5, 3)
    plain = rt.to_plain(block)
    assert [*plain._modules] == ["before", "conv1", "after"]
    assert relative_error(plain(x), block(x)) < SAME
    residual = rt.to_residual(block.branch, [""])
    assert relative_error(residual(x), block.branch(x)) < SAME


def test_conv_bn_under_a_shortcut_is_one_convolution(generator):
    branch = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3))
    net = scatter_statistics(nn.Sequential(Block(branch)), generator)
    plain = rt.to_plain(net)
    assert [type(m) for m in plain[0]] == [nn.Conv2d]
    x = images(generator)  # of both signs: nothing inside cuts the identity
    assert relative_error(plain(x), x + branch(x)) < SAME


def test_sigma_over_gamma_on_the_id_entries(generator):
    """x + BN(K x) is BN of a convolution with sigma / gamma added on the ID entries."""
    conv, norm = nn.Conv2d(3, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3)
    scatter_statistics(nn.Sequential(conv, norm), generator)
    other = copy.deepcopy(conv)
    entries = oracles.identity_kernel_by_loops((3, 3, 3, 3), rule="repeat", taps=(1, 1))
    sigma = (norm.running_var + norm.eps).sqrt() / norm.weight
    with torch.no_grad():
        other.weight += sigma.view(-1, 1, 1, 1) * entries
    block = nn.Sequential(Block(nn.Sequential(conv, norm))).eval()
    gap = rt.check_equivalence(
        rt.to_plain(block), rt.fold(nn.Sequential(other, norm)), images(generator)
    )
    assert gap.largest < SAME


# --- what cannot be converted


def normed(layer):
    return nn.Sequential(layer, nn.BatchNorm1d(2)).eval()


class Scaled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class Twice(nn.Conv2d):
    def _conv_forward(self, x, weight, bias):
        return 2 * super()._conv_forward(x, weight, bias)


def with_forward(module):
    module.forward = lambda x: x
    return module


def two_convs():
    return Block(nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU(), nn.Conv2d(1, 1, 1)))


class Both(nn.Sequential):
    def forward(self, x):
        return self[0](x) + self[1](x)


class Unseen(Rectified):
    """A forward that no graph shows."""

    def forward(self, x):
        return super().forward(x) if float(x.sum()) else x


class BasicBlock(nn.Module):
    """A block as users write it, with an operation in place and layers that it may not call."""

    def __init__(self, inputs, width, also=lambda net, x, out: 0):
        super().__init__()
        self.also, self.relu = also, nn.ReLU(inplace=True)
        self.conv1, self.norm1 = nn.Conv2d(inputs, width, 3, padding=1), nn.BatchNorm2d(width)
        self.conv2, self.norm2 = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
        self.down = nn.Sequential(nn.Conv2d(inputs, width, 1), nn.BatchNorm2d(width))
        self.head = nn.Sequential(nn.Conv2d(inputs, width, 1), nn.BatchNorm2d(width))

    def forward(self, x):
        first = self.conv1(x)
        out = self.norm2(self.conv2(self.relu(self.norm1(first))))
        out += self.down(x)
        out += self.head(x) if self.training else self.head[0](x)
        return self.relu(out) + self.also(self, x, first)


def test_batch_norms_fold_where_a_forward_calls_them(generator):
    """In a class of its own, but not those that it does not call."""
    net = scatter_statistics(nn.Sequential(BasicBlock(3, 4), BasicBlock(4, 4)), generator)
    folded = rt.fold(net)
    kept = [name for name, part in folded.named_modules() if isinstance(part, nn.BatchNorm2d)]
    assert kept == ["0.head.1", "1.head.1"] and type(folded[0]) is BasicBlock
    assert len(rt.conversion(folded).converted) == 6
    assert rt.check_equivalence(net, folded, images(generator)).largest < SAME


@pytest.mark.parametrize(
    "also",
    [lambda net, x, out: net.conv1.weight.sum(), lambda net, x, out: out,
     lambda net, x, out: net.conv1(-x)],
    ids=["weight", "output", "second call"],
)  # fmt: skip
def test_a_layer_that_is_read_otherwise_does_not_fold(also):
    with pytest.raises(ValueError, match="net: 'norm1' is a BatchNorm without a convolution"):
        rt.fold(BasicBlock(1, 1, also).eval())


def used_twice():
    part = nn.Sequential(two_convs())
    return nn.Sequential(nn.ReLU(), part, nn.Conv2d(1, 1, 1), part)


def sign_lost():
    part = nn.Sequential(nn.Conv2d(1, 1, 1))
    return nn.Sequential(part, nn.ReLU(), part, two_convs())


def tied():
    net = nn.Sequential(*[nn.Linear(3, 3) for _ in range(4)])
    net[2].weight = net[1].weight
    return net


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: rt.fold(rt.diracnet(10)), "'bn0' uses the statistics of each batch; call net"),
        (lambda: rt.fold(nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(
            1, track_running_stats=False)).eval()), "it has no others"),
        (lambda: rt.fold(nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU(), nn.BatchNorm2d(1)).eval()),
         "'2' is a BatchNorm without a conv.* directly in front"),
        (lambda: rt.fold(nn.Sequential(nn.BatchNorm2d(1)).eval()), "BatchNorm without a conv"),
        (lambda: rt.fold(rt.preresnet(10).eval()), "'block1.branch.bn1' is a BatchNorm with"),
        (lambda: rt.fold(nn.ModuleList([nn.BatchNorm2d(1)])), "'0' inside and a forward that"),
        (lambda: rt.fold(normed(Scaled(2, 2))), "'0', to be folded, is a Scaled"),
        (lambda: rt.fold(normed(prune.identity(nn.Linear(2, 2), "weight"))),
         "'0' is made by hooks"),
        (lambda: rt.fold(nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(30, 30)))),
         "'0' changes whenever it is read"),
        (lambda: rt.fold(rt.full_net(8)[3:]), "^net: 'block1.branch.bn1' uses the statistics of"),
        (lambda: rt.fold(normed(with_forward(nn.Linear(2, 2)))),
         "^net: '0', to be folded, is a Linear, which has a forward of its own, needs that of "
         "nn.Linear \\("),
        (lambda: rt.fold(nn.Sequential(nn.Conv2d(1, 1, 1), with_forward(nn.BatchNorm2d(1))).eval()),
         "'1', to be folded, is a BatchNorm2d, which has a forward of its own"),
        (lambda: rt.fold(nn.Sequential(Twice(1, 1, 1), nn.BatchNorm2d(1)).eval()),
         "is a Twice, which has a forward of its own, needs that of nn.Conv2d \\("),
        (lambda: rt.to_plain(nn.Sequential(with_forward(Block(nn.Linear(2, 2))))),
         "^net: '0' is a Block with a forward of its own, needs that of Block$"),
        (lambda: rt.fold("net"), "got str, needs a torch.nn.Module"),
        (lambda: rt.to_plain(used_twice()), "block '1.0' .* input that may be negative"),
        (lambda: rt.to_plain(sign_lost()), "input that may be negative"),
        (lambda: rt.to_plain(nn.Sequential(nn.ReLU(), nn.Conv2d(1, 1, 1), two_convs())),
         "input that may be negative"),
        (lambda: rt.to_plain(rt.full_net(8)), "'block1' has no plain net: branch.bn2 is in train"),
        (lambda: rt.to_plain(rt.full_net(8).eval()[3:]), "input that may be negative"),
        (lambda: rt.to_plain(rt.preresnet(10).eval()[:2]), "input that may be negative"),
        (lambda: rt.to_plain(nn.Sequential(Block(nn.Sequential(nn.ReLU(), nn.Conv2d(
            1, 1, 1))))), "no layer in front of the function"),
        (lambda: rt.to_plain(Block(nn.ReLU())), "block '' has no plain net: it has no layer under"),
        (lambda: rt.to_plain(Unseen(two_convs())), "input that may be negative"),
        (lambda: rt.to_plain(nn.Sequential(Block(nn.Conv2d(1, 1, 3, stride=2, padding=1)))),
         "different strides or channels"),
        (lambda: rt.to_plain(nn.Sequential(nn.ReLU(), Block(nn.Sequential(
            nn.Linear(2, 2), nn.ReLU(), nn.ReLU(), nn.Linear(2, 2))))),
         "more than one module between two layers"),
        (lambda: rt.to_plain(nn.Sequential(nn.ReLU(), Block(Unseen(Block(nn.Linear(2, 2)))))),
         "^net: block '1' has no plain net: cannot be traced: "),
        (lambda: rt.to_plain(nn.Sequential(nn.Linear(2, 2), Block(nn.Sequential(
            nn.ReLU(inplace=True), nn.Linear(2, 2))))), "writes into what the shortcut reads"),
        (lambda: rt.to_plain(nn.Sequential(nn.ReLU(), Block(Both(two_convs().branch,
         two_convs().branch)))), "has no plain net: its branch is a sum; needs one chain"),
        (lambda: rt.to_residual(rt.diracnet(10)), "has a DiracWeight, .* to_plain first"),
        (lambda: rt.to_residual(rt.simplified_net(8, identity="dominant")), "has a DominantWeight"),
        (lambda: rt.to_residual(rt.simplified_net(8, identity="dominant_upper")),
         "'conv4' has a DominantWeight"),
        (lambda: rt.to_residual(rt.simplified_net(8), ["conv11"]), "did you mean 'conv1'"),
        (lambda: rt.to_residual(rt.simplified_net(8), ["conv0"]),
         "'conv0' has no identity kernel; shape: got 16 outputs for 3 inputs"),
        (lambda: rt.to_residual(rt.simplified_net(8), rule="repeet"), "did you mean 'repeat'"),
        (lambda: rt.to_residual(nn.Sequential(nn.Linear(2, 2))), "layers: got none"),
        (lambda: rt.to_residual(two_convs(), []), "^layers: got \\[\\], needs a list"),
        (lambda: rt.to_residual(tied(), ["1"]), "layers '1' and '2' share a parameter"),
        (lambda: rt.to_residual(None), "got NoneType"),
        (lambda: rt.check_equivalence(nn.Linear(2, 2), nn.Linear(2, 3), torch.ones(1, 2)),
         "net_b: gives a tensor of shape \\(1, 3\\)"),
        (lambda: rt.check_equivalence(nn.Linear(2, 2), nn.Linear(2, 2), torch.ones(1, 2), steps=1),
         "optimizer: got None"),
        (lambda: rt.check_equivalence(nn.Linear(2, 3), nn.Linear(2, 2, bias=False),
         torch.ones(1, 2), steps=1, optimizer=OPTIMIZERS["sgd"]),
         "^steps: got 1, but the nets' parameters do not correspond: 'bias' of shape \\(3,\\) is in"
         " one only; needs steps=0$"),
        (lambda: rt.check_equivalence(nn.Linear(2, 2), nn.Linear(2, 2), torch.ones(1, 2), steps=-1),
         "steps: got -1"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_refusals(call, says):
    with pytest.raises(ValueError, match=says):
        call()
