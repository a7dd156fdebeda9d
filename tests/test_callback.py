"""Curvature in the metrics of a training: the dense Hessian's, repeatable, without a trace."""

import math
import sys

import oracles
import pytest
import torch
from small_trainings import Interrupted, interrupt_at
from tolerances import EPS, HESSIAN
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import resid_theory as rt
from resid_theory.training import Progress

RECIPE = rt.Recipe(
    epochs=2, batch=6, lr=0.1, milestones=(), augmentation="none", precision="float64"
)
NOW = Progress(step=0, epoch=0, net=0)


def tiny(seed=0, norm=False):
    """P = 17 or 21, not linear."""
    torch.manual_seed(seed)
    hidden = [nn.BatchNorm1d(2), nn.Tanh()] if norm else [nn.Tanh()]
    return nn.Sequential(nn.Linear(3, 2), *hidden, nn.Linear(2, 3))


@pytest.fixture
def data(generator):
    x = torch.randn(11, 3, generator=generator)
    return x, torch.randint(3, (11,), generator=generator)


def fit(net, data, *callbacks, **settings):
    settings = {"seed": 0, "progress": False, "device": "cpu", "every": 2, **settings}
    return rt.train(net, data, RECIPE, callbacks=callbacks, **settings)


def free(data, **settings):
    """Everything by products, also of a tiny net."""
    settings = {"index": True, "dense": 0, "probes": 2, "steps": 4, **settings}
    return rt.curvature_callback("cross_entropy", data, **settings)


def by_hand(net, data):
    """Eigenvalues, gradient norm and loss by torch alone."""
    weights = list(net.parameters())
    loss = nn.functional.cross_entropy(net(data[0]), data[1])
    hessian = oracles.hessian_by_nested_gradients(loss, weights)
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights)])
    return torch.linalg.eigvalsh(hessian), float(gradient.norm()), float(loss.detach())


both_ways = pytest.mark.parametrize("dense", [1000, 0], ids=["all", "products"])


@both_ways
def test_every_line_is_the_dense_hessian_s(data, dense):
    seen = []

    def oracle(net, moment):
        seen.append(by_hand(net, data))

    callback = free(data, k=2, dense=dense, tolerance=1e-9, steps=17)
    run = fit(tiny(), data, callback, oracle)
    assert [line["step"] for line in run.metrics] == [0, 2, 4] and len(seen) == 3
    for line, (values, gradient, loss) in zip(run.metrics, seen, strict=True):
        scale = float(values.abs().max())
        for name, exact in (("largest", values[-1]), ("largest_2", values[-2]),
                            ("smallest", values[0]), ("smallest_2", values[1])):  # fmt: skip
            bound = line[f"hessian_{name}_bound"]
            assert abs(line[f"hessian_{name}"] - float(exact)) <= bound + HESSIAN * scale
            assert bound <= 1e-8 * scale
        assert line["gradient_norm"] == pytest.approx(gradient, rel=1e-12)
        assert line["measured_loss"] == pytest.approx(loss, rel=100 * EPS)
        index = float((values < -1e-10 * scale).double().mean())
        assert line["hessian_index_low"] <= index <= line["hessian_index_high"]
        if dense:
            assert line["hessian_index"] == index and line["hessian_index_standard_error"] == 0
            assert line["hessian_products"] == 0 == line["hessian_missed_probability"]
        else:
            assert line["hessian_products"] > 0


def test_a_net_in_float32_has_the_exact_numbers_of_its_weights(data):
    net = tiny().float()
    numbers = rt.curvature_callback("cross_entropy", data, index=True)(net, NOW)
    values, gradient, _ = by_hand(tiny().float().double(), data)
    scale = float(values.abs().max())
    assert abs(numbers["hessian_smallest"] - float(values[0])) <= HESSIAN * scale
    assert numbers["hessian_index"] == float((values < -1e-10 * scale).double().mean())
    assert numbers["gradient_norm"] == pytest.approx(gradient, rel=1e-12)
    assert net[0].weight.dtype == torch.float32
    # By products it stays in float32, and the bounds allow for that.
    numbers = free(data)(net, NOW)
    gap = abs(numbers["hessian_largest"] - float(values[-1]))
    assert gap <= numbers["hessian_largest_bound"]


@pytest.mark.filterwarnings("ignore:data. .* shuffles between passes")
@pytest.mark.parametrize(
    ("kind", "stops", "save_seconds"),
    [("all", (1,), 0.0), ("products", (2, 3), 1e9), ("loader", (1,), 0.0)],
    ids=["all-every_step", "products-never", "loader-every_step"],
)
def test_resumed_metrics_are_identical(tmp_path, data, kind, stops, save_seconds):
    loader = DataLoader(TensorDataset(*data), batch_size=7, shuffle=True)
    callback = free(loader if kind == "loader" else data, dense=1000 if kind == "all" else 0)

    def go(name, *others):
        return fit(
            tiny(norm=True), data, *others, callback, every=1, out=tmp_path / name,
            save_seconds=save_seconds,
        )  # fmt: skip

    straight = go("straight")
    for stop in stops:
        with pytest.raises(Interrupted):
            go("stopped", interrupt_at(stop))
    stopped = go("stopped")
    assert stopped.metrics == straight.metrics
    lines = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("straight", "stopped")]
    assert lines[0] == lines[1] and b"hessian_index_standard_error" in lines[0]


@both_ways
def test_several_nets_have_the_numbers_of_each_alone(data, dense):
    callback = free(data, dense=dense)
    both = fit([tiny(0), tiny(1)], data, callback)
    for seed in range(2):
        alone = fit(tiny(seed), data, callback)
        mine = [{**line, "net": 0} for line in both.metrics if line["net"] == seed]
        assert mine == alone.metrics


@both_ways
def test_a_training_that_is_watched_is_the_same(data, dense):
    nets = tiny(norm=True), tiny(norm=True)
    fit(nets[0], data, free(data, dense=dense, batchnorm="batch"))
    fit(nets[1], data)
    for one, other in zip(*(net.state_dict().values() for net in nets), strict=True):
        assert torch.equal(one, other)


@both_ways
def test_the_net_is_left_as_it_was(data, dense, left_alone):
    net = tiny(norm=True)
    net[1].eval()
    net(data[0]).sum().backward()
    loader = DataLoader(TensorDataset(*data), batch_size=4)
    with left_alone(net):
        free(loader, dense=dense)(net, NOW)


def test_draws_follow_seed_and_step_and_nothing_else(data):
    # Wide enough for a short quadrature to depend on its start.
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3))

    def resolution(seed, step):
        torch.rand(3)
        moment = Progress(step=step, epoch=0, net=step)
        found = free(data, seed=seed, tolerance=0.1)(net, moment)
        assert 0 < found["hessian_index_standard_error"] < math.inf  # of two probes
        return found["hessian_index_threshold"]

    assert resolution(0, 4) == resolution(0, 4)
    assert len({resolution(seed, step) for seed in range(2) for step in range(2)}) == 4


@pytest.mark.parametrize("matrix", ["gauss_newton", "empirical_fisher"])
def test_other_matrices_have_their_own_names(data, matrix):
    found = [
        rt.curvature_callback("cross_entropy", data, matrix=matrix, dense=dense, prefix="train_")(
            tiny(), NOW
        )
        for dense in (1000, 0)
    ]
    name = f"train_{matrix}_largest"
    gap = abs(found[0][name] - found[1][name])
    assert gap <= found[1][f"{name}_bound"] + HESSIAN * found[0][name]
    assert all(key.startswith("train_") for key in found[0])
    assert f"train_{matrix}_index" not in found[0]
    assert list(found[0]) == list(found[1])


@both_ways
@pytest.mark.parametrize("index", [True, False])
def test_every_number_is_the_report_s(data, dense, index, monkeypatch):
    given, module = [], sys.modules["resid_theory.curvature.callback"]

    def spectrum(operator, **options):
        given.append((operator, options, rt.spectrum(operator, **options)))
        return given[-1][2]

    monkeypatch.setattr(module, "spectrum", spectrum)
    options = {"tolerance": 0.01, "probes": 3, "steps": 5}
    numbers = rt.curvature_callback(
        "cross_entropy", data, k=2, index=index, dense=dense, prefix="p_", **options
    )(tiny(), NOW)
    ((operator, used, report),) = given
    assert used.pop("generator") >= 0
    options["probes"] = 3 if index else 1
    method = "dense" if dense else "matrix-free"
    assert used == {"k": 2, "density": index, "method": method, **options}
    exact = {"measured_loss": operator.loss, "gradient_norm": float(operator.gradient.norm())}
    for end in ("largest", "smallest"):
        for name, value in zip((end, f"{end}_2"), getattr(report, end), strict=True):
            exact[f"hessian_{name}"] = value.value
            exact[f"hessian_{name}_bound"] = value.high - value.value
    exact["hessian_missed_probability"] = report.pairs.missed_probability
    exact["hessian_products"] = report.products
    if index:
        for name, field in (("", "value"), ("_standard_error", "standard_error"), ("_low", "low"),
                            ("_high", "high")):  # fmt: skip
            exact[f"hessian_index{name}"] = getattr(report.index, field)
        exact["hessian_index_threshold"] = report.index_threshold
    assert numbers == {f"p_{name}": value for name, value in exact.items()}
    assert list(numbers) == [f"p_{name}" for name in exact]


def test_some_parameters_only(data):
    numbers = rt.curvature_callback("cross_entropy", data, parameters="2.*")(tiny(), NOW)
    operator = rt.curvature_operator(tiny(), "cross_entropy", data, parameters="2.*")
    largest = float(torch.linalg.eigvalsh(operator.dense())[-1])
    assert numbers["hessian_largest"] == pytest.approx(largest, rel=1e-12)
    assert numbers["gradient_norm"] == pytest.approx(float(operator.gradient.norm()), rel=1e-12)


def test_a_loss_of_the_weights_themselves_follows_the_choice_of_parameters(data):
    net = tiny()

    def loss(output, target):
        return nn.functional.cross_entropy(output, target) + net[2].weight.square().sum()

    numbers = rt.curvature_callback(loss, data, parameters="2.*")(net, NOW)
    operator = rt.curvature_operator(net, loss, data, parameters="2.*")
    assert numbers["gradient_norm"] == pytest.approx(float(operator.gradient.norm()), rel=1e-12)


def of_batch(net, batch):
    return nn.functional.cross_entropy(net(batch["x"]), batch["y"])


def as_loader(x, y):
    return DataLoader(TensorDataset(x, y), batch_size=7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@both_ways
@pytest.mark.parametrize(
    ("loss", "made"),
    [
        ("cross_entropy", lambda x, y: (x, y)),
        ("cross_entropy", lambda x, y: (x.numpy(), y.numpy())),
        ("cross_entropy", as_loader),
        ("cross_entropy", lambda x, y: [(x[:7], y[:7]), (x[7:], y[7:])]),
        (
            rt.Loss(of_batch, of="batch"),
            lambda x, y: [{"x": x[:7], "y": y[:7]}, {"x": x[7:], "y": y[7:]}],
        ),
    ],
    ids=["pair", "arrays", "loader", "list", "closure"],
)
def test_data_of_every_kind_follow_the_net_s_dtype(data, loss, made, dense, dtype):
    given = made(data[0].float(), data[1])
    numbers = rt.curvature_callback(loss, given, dense=dense, tolerance=1e-5)(tiny().to(dtype), NOW)
    values, gradient, _ = by_hand(tiny().to(dtype).double(), (data[0].float().double(), data[1]))
    single = 1e3 * torch.finfo(torch.float32).eps if not dense and dtype == torch.float32 else 1e-12
    gap = abs(numbers["hessian_largest"] - float(values[-1]))
    assert gap <= numbers["hessian_largest_bound"] + HESSIAN * float(values[-1])
    assert numbers["gradient_norm"] == pytest.approx(gradient, rel=single)


def test_images_as_train_takes_them():
    pixels = torch.arange(12 * 9, dtype=torch.uint8).view(12, 1, 3, 3)
    images = rt.Images(pixels=pixels, labels=torch.arange(12) % 2, mean=(0.5,), std=(0.3,))
    net = nn.Sequential(nn.Flatten(), nn.Linear(9, 2))
    run = fit(net, images, rt.curvature_callback("cross_entropy", images))
    assert all(number >= 0 for number in run.column("hessian_largest"))
    inputs = images.inputs(images.pixels, torch.float64)
    values, _, loss = by_hand(net, (inputs, images.labels))
    last = run.metrics[-1]
    assert last["hessian_largest"] == pytest.approx(float(values[-1]), rel=1e-12)
    assert last["measured_loss"] == pytest.approx(loss, rel=100 * EPS)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "entropy"}, "loss: unknown name 'entropy'"),
        ({"matrix": "hesse"}, "matrix: unknown name 'hesse'; did you mean 'hessian'"),
        ({"batchnorm": "train"}, "batchnorm: unknown name 'train'"),
        ({"k": 0}, "k: got 0, needs at least 1"),
        ({"dense": -1}, "dense: got -1"),
        ({"tolerance": 0.0}, "tolerance: got 0.0"),
        ({"probes": 1.5}, "probes: got 1.5"),
        ({"steps": 0}, "steps: got 0"),
        ({"seed": -1}, "seed: got -1"),
        ({"parameters": torch.ones(2)}, "parameters: got a tensor, which is that of one net"),
        ({"parameters": [torch.ones(2)]}, "parameters: got a tensor"),
        ({"prefix": 3}, "prefix: got 3, needs a string"),
        ({"data": iter([1])}, "can be read only once"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_one_clear_error_when_it_is_made(data, settings, message):
    with pytest.raises(ValueError, match=message):
        rt.curvature_callback(**{"loss": "cross_entropy", "data": data, **settings})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"parameters": "conv*"}, "parameters"),
        ({"data": (torch.ones(4, 5), torch.zeros(4).long())}, "data x: the net does not take"),
        ({"data": (torch.ones(4, 3), torch.full((4,), 7))}, "data y: got class labels"),
        ({"data": 3}, "data: got int"),
    ],
    ids=["parameters", "inputs", "labels", "nothing"],
)
@both_ways
def test_what_does_not_fit_is_refused_before_the_first_step(data, dense, settings, message):
    net = tiny()
    settings = {"loss": "cross_entropy", "data": data, "dense": dense, **settings}
    with pytest.raises(ValueError, match=message):
        fit(net, data, rt.curvature_callback(**settings))
    assert torch.equal(net[0].weight, tiny()[0].weight)
