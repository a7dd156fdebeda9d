"""Every call that takes data counts a sample of weight 2 twice, or refuses weights."""

import importlib
import inspect
import pkgutil

import pytest
import torch
from oracles import noise
from torch import Tensor, nn

import resid_theory as rt
from resid_theory.training import Recipe

COPIES = torch.tensor([1, 0, 2, 1, 3])
X, LABELS = noise(5, 3, seed=1), torch.tensor([0, 2, 1, 2, 0])
VALUES = noise(5, 3, seed=2)
IMAGES = rt.Images(
    pixels=torch.randint(256, (5, 1, 8, 8), generator=torch.Generator().manual_seed(0)).byte(),
    labels=LABELS,
    mean=(0.5,),
    std=(0.3,),
)
RECIPE = Recipe(epochs=1, batch=5, lr=0.1, precision="float64", augmentation="none", milestones=())


def perceptron():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3)).double()


def branching():
    torch.manual_seed(0)
    branch = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
    return nn.Sequential(rt.networks.Block(branch), nn.Linear(3, 3)).double()


def linear_net(**options):
    net = rt.ShortcutNet(3, blocks=2, shortcut_depth=1, **options)
    rt.initialize(net, "near_zero", generator=0)
    return net


def trained(data):
    net, recipe = perceptron(), RECIPE.change(batch=rt.Data.of(data).whole().size)
    rt.train(net, data, recipe, seed=0, device="cpu", progress=False)
    return torch.cat([p.detach().reshape(-1) for p in net.parameters()])


def descended(data):
    net = linear_net(mid="tanh", bias=False)
    start = net.get_parameter("weights").detach()
    return rt.gradient_descent(
        net, "square", data, weights=start, learning_rate=0.1, epochs=1, keep=[0, 1]
    )


def trajectory(data):
    net = linear_net(mid="tanh", bias=False)
    path = descended((X, VALUES))
    return rt.descent.hessian_trajectory(net, "square", data, path).spectra[1].eigenvalues


def images_net():
    return rt.simplified_net(5, identity="dominant")


CLASSES, REGRESSION = (X, LABELS), (X, VALUES)
# A pair, and what a call makes of data: a number or a tensor; None of what cannot have weights.
CALLS = {
    "batch_spectra": (CLASSES, lambda d: torch.tensor(rt.curvature.batch_spectra(
        perceptron(), "cross_entropy", d, batch=3, tolerance=1e-9).whole.value)),
    "check_equivalence": (CLASSES, lambda d: rt.check_equivalence(perceptron(), perceptron(), d)),
    "curvature_callback": (CLASSES, lambda d: torch.tensor(list(rt.curvature_callback(
        "cross_entropy", d)(perceptron(), type("Moment", (), {"step": 1})).values()))),
    "curvature_operator": (CLASSES, lambda d: rt.curvature_operator(
        perceptron(), "cross_entropy", d, matrix="empirical_fisher").dense()),
    "dominant_flows": (IMAGES, lambda d: rt.dominant_flows(images_net(), d).all_shares),
    "evaluate": (CLASSES, lambda d: torch.tensor(rt.evaluate(perceptron(), d).loss)),
    "gradient_descent": (REGRESSION, lambda d: descended(d).kept_weights[1]),
    "hessian": (CLASSES, lambda d: rt.hessian(perceptron(), "cross_entropy", d)),
    "hessian_cost": (CLASSES, lambda d: rt.curvature.hessian_cost(
        perceptron(), "cross_entropy", d)),
    "hessian_spectrum": (REGRESSION, lambda d: rt.hessian_spectrum(
        linear_net(), "square", d).eigenvalues),
    "interlayer_cushions": (CLASSES, lambda d: rt.interlayer_cushions(perceptron(), d, start=1)),
    "kfac": (CLASSES, lambda d: rt.curvature.kfac(perceptron(), "cross_entropy", d).dense()),
    "layer_cushions": (CLASSES, lambda d: rt.layer_cushions(perceptron(), d)),
    "spectrum": (CLASSES, lambda d: torch.tensor(rt.spectrum(
        perceptron(), "cross_entropy", d, matrix="gauss_newton").trace.value)),
    "train": (CLASSES, trained),
    "gather": (REGRESSION, rt.data.gather),
    "hessian_trajectory": (REGRESSION, trajectory),
    "activation_contraction": (CLASSES, lambda d: rt.stability.activation_contraction(
        perceptron(), d)),
    "activation_noise": (CLASSES, lambda d: rt.stability.activation_noise(perceptron(), d)),
    "block_cushions": (IMAGES, lambda d: rt.stability.block_cushions(images_net(), d)),
    "compression_bound": (CLASSES, lambda d: rt.stability.compression_bound(
        perceptron(), d, margin=1.0)),
    "feature_gradients": (IMAGES, lambda d: rt.stability.feature_gradients(images_net(), d)),
    "interlayer_smoothness": (CLASSES, lambda d: rt.stability.interlayer_smoothness(
        perceptron(), d)),
    "weight_noise": (CLASSES, lambda d: rt.stability.weight_noise(perceptron(), d)),
    "linear_gradient": (REGRESSION, lambda d: rt.theory.linear_gradient(linear_net(), d)),
    "linear_hessian": (REGRESSION, lambda d: rt.theory.linear_hessian(linear_net(), d)),
    "linear_hvp": (REGRESSION, lambda d: rt.theory.linear_hvp(linear_net(), d, torch.ones(18))),
    "linear_loss": (REGRESSION, lambda d: rt.theory.linear_loss(linear_net(), d)),
    "linear_optimum": (REGRESSION, rt.theory.linear_optimum),
    "zero_point_of_net": (CLASSES, lambda d: rt.curvature.zero_point_of_net(
        branching(), "cross_entropy", d).spectrum.eigenvalues),
    "zero_point": (REGRESSION, lambda d: rt.theory.zero_point(d, blocks=2, shortcut_depth=2)),
}  # fmt: skip
WEIGHED = {
    "batch_spectra", "curvature_callback", "curvature_operator", "evaluate", "hessian",
    "hessian_cost", "hessian_spectrum", "hessian_trajectory", "kfac", "spectrum", "train",
    "zero_point_of_net",
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_weights_count_or_are_refused(name):
    given, call = CALLS[name]
    weighted = rt.Data.of(given, sample_weight=COPIES)
    if name not in WEIGHED:
        with pytest.raises(ValueError, match="^sample_weight: the data have weights of the sampl"):
            call(weighted)
        return
    rows = torch.arange(5).repeat_interleave(COPIES)
    repeated = tuple(side[rows] for side in given)
    found, exact = call(weighted), call(repeated)
    if isinstance(exact, Tensor):
        torch.testing.assert_close(found, exact, rtol=1e-9, atol=1e-12)


def test_no_call_is_left_out():
    named = set()
    for room in pkgutil.iter_modules(rt.__path__):
        module = importlib.import_module(f"resid_theory.{room.name}")
        for name in getattr(module, "__all__", ()):
            value = getattr(module, name)
            if inspect.isfunction(value) and "data" in inspect.signature(value).parameters:
                named.add(name)
    assert named - set(CALLS) == {"resume"}  # which takes what train took


def test_weights_of_a_loss_of_net_and_batch_are_its_own():
    loss = rt.Loss(lambda net, batch: net(batch[0]).square().mean(), of="batch")
    data = rt.Data.of([(X, LABELS, COPIES.double())], sample_weight=True)
    with pytest.raises(ValueError, match="^sample_weight: the data have weights"):
        rt.hessian(perceptron(), loss, data)


@pytest.mark.parametrize("given", [(X, LABELS), IMAGES], ids=["pair", "images"])
def test_weights_given_later_count(given):
    (batch,) = rt.Data.of(rt.Data.of(given), sample_weight=COPIES)
    assert batch.sample_weight.tolist() == COPIES.tolist()


def test_weights_of_images_count():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).double()
    x = (IMAGES.pixels.double() / 255 - 0.5) / 0.3
    each = nn.functional.cross_entropy(net(x), LABELS, reduction="none").detach()
    found = rt.evaluate(net, rt.Data.of(IMAGES, sample_weight=COPIES), batch=2)
    exact = float((COPIES * each).sum() / COPIES.sum())
    assert found.loss == pytest.approx(exact, rel=1e-6)  # pixels are normalized in float32
    assert found.wrong[1] == int((net(x).argmax(1) != LABELS).sum())
    assert found.notes[-1].endswith("weights of samples are in the loss alone")


@pytest.mark.parametrize(("data", "weight", "message"), [
    ((X, LABELS, COPIES.double()), COPIES, "the data have weights of their own, too"),
    ((X, LABELS), True, r"got True for a pair \(x, y\), needs \(x, y, weights\)"),
    ([(X, LABELS)], True, r"got True for a pair \(x, y\), needs \(x, y, weights\)"),
    ([(X, LABELS)], COPIES, "got numbers together with batches; needs True"),
    ((X, LABELS), COPIES[:4], r"got shape \(4,\) for 5 samples"),
    ((X, LABELS), -COPIES, r"got shape \(5,\) with -\d for 5 samples, needs one finite number of"),
    ((X, LABELS), COPIES.double().log().abs(), r"got shape \(5,\) with inf for 5"),
])  # fmt: skip
def test_weights_that_do_not_belong_to_the_samples_are_refused(data, weight, message):
    with pytest.raises(ValueError, match=f"^sample_weight: {message}"):
        list(rt.Data.of(data, sample_weight=weight))
