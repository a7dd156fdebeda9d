"""Stacked gradient descent: against autograd one net at a time, against its laws, row by row."""

import contextlib
import math

import numpy as np
import pytest
import torch
from oracles import shortcut_net, square_loss
from tolerances import EPS, relative_error, round_off

import resid_theory as rt
from resid_theory.descent import at_loss, hessian_trajectory, objective
from resid_theory.descent.objective import SampledNets
from resid_theory.losses import LOSSES
from resid_theory.theory.linear.stacked_nets import StackedChains

IDENTITY = torch.nn.Identity()
AFTER_200_EPOCHS = 1e-11  # round-off of 200 steps, of sums over samples in another order
NETS = [
    pytest.param(dict(blocks=6, n=1, shortcut=False), "orthogonal", id="plain"),
    pytest.param(dict(blocks=5, n=1, shortcut=True), "near_zero", id="1-shortcut"),
    pytest.param(dict(blocks=3, n=2, shortcut=True), "near_zero", id="2-shortcut"),
    pytest.param(dict(blocks=2, n=3, shortcut=True), "xavier", id="3-shortcut"),
]


def problem(width, samples, device, generator):
    """Correlated inputs and targets, neither whitened nor centred."""
    mix = torch.randn(width, width, generator=generator) / width**0.5 + torch.eye(width)
    x = torch.randn(samples, width, generator=generator) @ mix + 0.1
    y = torch.randn(samples, width, generator=generator) + 0.5 * x
    return x.to(device), y.to(device)


def drawn(kind, rows, net, generator, device, scale=0.1):
    shape = (*rows, net.blocks, net.shortcut_depth, net.width, net.width)
    return rt.networks.draw_weights(kind, shape, generator=generator, scale=scale).to(device)


def descend_by_autograd(net, x, y, weights, rate, epochs, mid=IDENTITY):
    """One net, one step at a time, on the samples: losses, weights and gradients at all epochs."""
    points, losses, gradients = [weights.clone()], [], []
    for epoch in range(epochs + 1):
        point = points[-1].clone().requires_grad_()
        output = shortcut_net(
            list(point.flatten(0, 1)), None, x, n=net.shortcut_depth, shortcut=net.shortcut,
            pre=IDENTITY, mid=mid, post=IDENTITY,
        )  # fmt: skip
        loss = square_loss(output, y) if len(x) < 30 else 0.5 * (output - y).square().sum() / len(x)
        gradients += torch.autograd.grad(loss, point)
        losses.append(loss.item())
        if epoch < epochs:
            points.append(points[-1] - rate * gradients[-1])
    return losses, points, gradients


@pytest.mark.parametrize(("shape", "kind"), NETS)
def test_closed_form_descent_equals_autograd_on_the_data(shape, kind, generator, device):
    net = rt.ShortcutNet(4, shape["blocks"], shape["n"], shortcut=shape["shortcut"])
    x, y = problem(4, 300, device, generator)
    starts = drawn(kind, (3,), net, generator, device)
    rates = torch.tensor([0.01, 0.03])
    path = rt.gradient_descent(
        net, "square", (x, y), weights=starts, learning_rate=rates[:, None], epochs=200
    )
    for i, rate in enumerate(rates.tolist()):
        losses, points, gradients = descend_by_autograd(net, x, y, starts[i], rate, 200)
        assert relative_error(path.weights[i, i], points[-1]) <= AFTER_200_EPOCHS
        measured = path.loss[:, i, i].cpu()
        assert relative_error(measured, torch.tensor(losses)) <= AFTER_200_EPOCHS
        norms = torch.linalg.matrix_norm(points[-1]).flatten()
        assert relative_error(path.weight_norms[-1, i, i], norms) <= AFTER_200_EPOCHS
        norm = gradients[-1].norm().item()
        assert path.gradient_norm[-1, i, i].item() == pytest.approx(norm, 1e-9)


@pytest.mark.parametrize("chunk", [1 << 26, 1], ids=["together", "row by row"])
def test_nonlinear_rows_equal_autograd_one_net_at_a_time(chunk, generator, device, monkeypatch):
    monkeypatch.setattr("resid_theory.descent.objective._CHUNK", chunk)
    net = rt.ShortcutNet(4, 3, 2, mid="tanh")
    x, y = problem(4, 20, device, generator)
    starts = drawn("near_zero", (2, 1), net, generator, device, scale=0.5)
    path = rt.gradient_descent(
        net, "square", (x, y), weights=starts, learning_rate=[0.05, 0.1], epochs=30
    )
    assert path.final_loss.shape == (2, 2)
    for seed in range(2):
        for column, rate in enumerate((0.05, 0.1)):
            losses, points, _ = descend_by_autograd(
                net, x, y, starts[seed, 0], rate, 30, mid=torch.tanh
            )
            assert relative_error(path.weights[seed, column], points[-1]) <= AFTER_200_EPOCHS
            measured = path.loss[:, seed, column].cpu()
            assert relative_error(measured, torch.tensor(losses)) <= AFTER_200_EPOCHS


@pytest.mark.parametrize(("fit", "together"), [(0.5, [1] * 5), (2.5, [2, 2, 1])], ids=str)
@pytest.mark.parametrize("where", ["cpu", "cuda"])
def test_rows_are_evaluated_together_as_far_as_memory_goes(
    fit, together, where, cuda, generator, monkeypatch
):
    place = torch.device("cpu") if where == "cpu" else cuda
    net = rt.ShortcutNet(4, 3, 2, mid="tanh", device=place)
    # Input, product and activation of each of 6 layers, for 20 samples of width 4.
    room, seen, evaluate = int(fit * 3 * 6 * 20 * 4 * 8), [], SampledNets._evaluate
    monkeypatch.setattr(objective, "available_bytes", lambda device: 2 * room)
    if where == "cpu":
        monkeypatch.setattr(objective, "_CHUNK", room)

    def counted(nets, weights):
        seen.append(weights.shape[1])
        return evaluate(nets, weights)

    monkeypatch.setattr(SampledNets, "_evaluate", counted)
    starts = drawn("near_zero", (5,), net, generator, place)
    data = problem(4, 20, place, generator)
    rt.gradient_descent(net, "square", data, weights=starts, learning_rate=0.1, epochs=0)
    assert seen == together


def test_rows_on_a_cpu_have_64_mib_for_what_they_keep(monkeypatch):
    x = torch.zeros(1, 4, dtype=torch.float64).expand(50_000, 4)  # 28.8 MB a row
    nets, seen = SampledNets(rt.ShortcutNet(4, 3, 2), None, rt.Regression(x, x)), []
    monkeypatch.setattr(nets, "_evaluate", lambda w: (seen.append(w.shape[1]) or w[0, :, 0, 0], w))
    nets(torch.zeros(6, 5, 4, 4))
    assert seen == [2, 2, 1]


@pytest.mark.parametrize("mid", [None, "tanh"])
def test_float32_weights_are_computed_with_in_float32(mid, generator):
    net, data = rt.ShortcutNet(3, 2, 2, mid=mid), problem(3, 40, "cpu", generator)
    starts = drawn("near_zero", (4,), net, generator, "cpu")
    given = dict(learning_rate=0.05, epochs=9)
    path = rt.gradient_descent(net, "square", data, weights=starts.float(), **given)
    exact = rt.gradient_descent(net, "square", data, weights=starts, **given)
    assert path.weights.dtype == torch.float32
    rounding = 1000 * torch.finfo(torch.float32).eps
    for name in ("weights", "loss", "gradient_norm", "weight_norms"):
        measured = getattr(path, name)
        assert name == "weights" or measured.dtype == torch.float64
        assert relative_error(measured.double(), getattr(exact, name)) <= rounding


def test_cross_entropy_descends_to_a_smaller_loss(generator, device):
    net = rt.ShortcutNet(3, 2, 2, mid="relu")
    x = torch.randn(50, 3, generator=generator).to(device)
    y = torch.eye(3, device=device)[x.argmax(1)]
    starts = drawn("near_zero", (2,), net, generator, device)
    path = rt.gradient_descent(
        net, "cross_entropy", (x, y), weights=starts, learning_rate=0.1, epochs=40
    )
    by_hand = torch.nn.functional.cross_entropy(
        torch.func.functional_call(net, {"weights": path.weights[1]}, (x,)), y
    )
    assert path.final_loss[1].item() == pytest.approx(by_hand.item(), rel=round_off(1000))
    assert bool((path.loss.diff(dim=0) < 0).all())


@pytest.mark.parametrize(("shape", "kind"), NETS)
def test_stacked_loss_and_gradient_equal_the_one_net_formula(shape, kind, generator, device):
    net = rt.ShortcutNet(5, shape["blocks"], shape["n"], shortcut=shape["shortcut"], device=device)
    moments = rt.Moments.of(problem(5, 50, device, generator))
    rows = drawn(kind, (4,), net, generator, device)
    chains = StackedChains(moments, net.shortcut_depth, shortcut=net.shortcut)
    loss, gradient = chains(rows.flatten(1, 2).transpose(0, 1).contiguous())
    for row in range(4):
        with torch.no_grad():
            net.weights.copy_(rows[row])
        exact = rt.theory.linear_loss(net, moments)
        assert abs(loss[row] - exact) <= round_off(1000) * abs(exact)
        own = gradient[:, row].reshape(-1)
        assert relative_error(own, rt.theory.linear_gradient(net, moments)) <= round_off(1000)


def test_a_diverging_row_is_frozen_and_the_others_are_as_without_it(generator, device):
    net = rt.ShortcutNet(4, 3, 2)
    data = problem(4, 60, device, generator)
    starts = drawn("near_zero", (2,), net, generator, device)
    rates = torch.tensor([0.02, 1e6, 0.05, 3.0])
    given = dict(weights=starts, epochs=60, keep=[0, 60])
    mixed = rt.gradient_descent(net, "square", data, learning_rate=rates[:, None], **given)
    sane = rt.gradient_descent(net, "square", data, learning_rate=rates[[0, 2], None], **given)
    assert mixed.diverged.any(1).tolist() == [False, True, False, True]
    assert relative_error(mixed.weights[[0, 2]], sane.weights) <= round_off(1000)
    assert relative_error(mixed.loss[:, [0, 2]], sane.loss) <= round_off(1000)
    for row, seed in ((1, 0), (1, 1), (3, 0), (3, 1)):
        own, start = mixed.loss[:, row, seed], mixed.loss[0, row, seed]
        (losses, _, _) = descend_by_autograd(net, *data, starts[seed], rates[row].item(), 60)
        passed = next(e for e, value in enumerate(losses) if not value <= 1e3 * start.item())
        assert mixed.diverged_at[row, seed] == passed
        assert bool(own[passed:].isinf().all()) and bool(own[:passed].isfinite().all())
    assert bool((mixed.diverged_at[[0, 2]] == -1).all())
    assert bool(mixed.kept_weights[1, 1].isnan().all())
    assert not bool(mixed.kept_weights[:, [0, 2]].isnan().any())


def test_a_limit_is_absolute(generator, device):
    net = rt.ShortcutNet(3, 2, 2)
    data = problem(3, 30, device, generator)
    starts = drawn("near_zero", (), net, generator, device)
    path = rt.gradient_descent(
        net, "square", data, weights=starts, learning_rate=0.01, epochs=3, limit=1e-3
    )
    assert path.diverged_at.tolist() == 0 and path.shown()["diverged_at"] == [0]
    assert path.diverged and path.loss.isinf().all()


def test_a_row_has_diverged_above_a_thousand_times_its_first_loss():
    # w ← (1 - 2.1) w, so that the loss w² / 2 grows by 1.21 an epoch.
    net, zero = rt.ShortcutNet(1, 1, 1, shortcut=False), torch.zeros(1, 1)
    data = rt.Moments(sxx=torch.eye(1), syx=zero, syy=zero, count=1)
    given = dict(weights=torch.ones(1, 1, 1, 1), learning_rate=2.1, epochs=60)
    path = rt.gradient_descent(net, "square", data, **given)
    assert path.diverged_at == math.ceil(math.log(1000) / math.log(1.21))
    at_limit = rt.gradient_descent(net, "square", data, limit=path.loss[5].item(), **given)
    assert at_limit.diverged_at == 6


def test_a_loss_below_zero_has_not_diverged(generator):
    net, data = rt.ShortcutNet(3, 2, 2, mid="tanh"), problem(3, 30, "cpu", generator)
    starts = drawn("near_zero", (2,), net, generator, "cpu")
    given = dict(weights=starts, learning_rate=0.05, epochs=5)
    lower = rt.gradient_descent(net, lambda out, y: LOSSES["square"](out, y) - 50, data, **given)
    path = rt.gradient_descent(net, "square", data, **given)
    assert not bool(lower.diverged.any())
    assert relative_error(lower.loss + 50, path.loss) <= round_off(1000)


def test_balance_inside_a_block_changes_only_to_second_order(generator, device):
    """W'W'^T of neighbours: the first-order terms of a step cancel exactly."""
    net = rt.ShortcutNet(4, 2, 3)
    data = problem(4, 60, device, generator)
    start = drawn("near_zero", (), net, generator, device, scale=0.7)
    rate = 0.05
    step = rt.gradient_descent(net, "square", data, weights=start, learning_rate=rate, epochs=1)
    gradient = (start - step.weights) / rate

    def balance(w):
        return w[:, 1:].mT @ w[:, 1:] - w[:, :-1] @ w[:, :-1].mT

    change = balance(step.weights) - balance(start)
    assert relative_error(change, rate**2 * balance(gradient)) <= 1e4 * EPS / rate**2


def test_records_and_kept_weights_are_of_the_epochs_asked_for(generator, device):
    net = rt.ShortcutNet(3, 2, 2)
    data = problem(3, 30, device, generator)
    start = drawn("near_zero", (), net, generator, device)
    given = dict(weights=start, learning_rate=0.05)
    path = rt.gradient_descent(
        net, "square", data, epochs=25, record_every=10, keep=[7, 0, 25], **given
    )
    every = rt.gradient_descent(net, "square", data, epochs=25, keep=range(26), **given)
    none = rt.gradient_descent(net, "square", data, epochs=0, **given)
    assert none.epochs.tolist() == [0] and torch.equal(none.weights, start)
    assert none.kept.dtype == torch.int64 and none.kept_weights.shape == (0, 2, 2, 3, 3)
    assert path.epochs.tolist() == [0, 10, 20, 25] and every.epochs.tolist() == [*range(26)]
    assert path.kept.tolist() == [0, 7, 25]
    assert torch.equal(path.loss, every.loss[path.epochs])
    assert torch.equal(path.kept_weights, every.kept_weights[path.kept])
    assert torch.equal(path.kept_weights[-1], path.weights)
    norms = torch.linalg.matrix_norm(every.kept_weights).flatten(-2)
    assert torch.equal(every.weight_norms, norms)
    assert relative_error(every.mean_weight_norm, norms.sum(1) / 4) <= round_off(4)
    level = every.loss[13].item()
    assert every.reached(level) == 13 and path.reached(level) == 20
    assert every.reached(-1.0) == -1


def test_a_result_is_that_of_nets_one_by_one(generator, device):
    net, (x, y) = rt.ShortcutNet(3, 2, 2), problem(3, 40, device, generator)
    starts = drawn("near_zero", (3,), net, generator, device, scale=0.5)
    starts[2] *= 1.5
    rates, epochs, kept = [0.01, 1.0], [0, 3, 6, 7], [1, 7]
    path = rt.gradient_descent(
        net, "square", (x, y), weights=starts, learning_rate=torch.tensor(rates)[:, None],
        epochs=7, record_every=3, keep=kept,
    )  # fmt: skip
    alone = [descend_by_autograd(net, x, y, start, rate, 7) for rate in rates for start in starts]
    ends = [next((e for e, v in enumerate(losses) if not v <= 1e3 * losses[0]), None)
            for losses, *_ in alone]  # fmt: skip
    assert ends[:3] == [None] * 3 and None not in ends[3:]

    def recorded(value, past, at=epochs):
        """A value of every net at epochs, (t, rates, seeds, ...), or what is past its end."""
        rows = [[value(*run, epoch) if end is None or epoch < end else past for epoch in at]
                for run, end in zip(alone, ends, strict=True)]  # fmt: skip
        return torch.tensor(rows).transpose(0, 1).unflatten(1, (2, 3))

    exact = {
        "loss": recorded(lambda losses, points, gradients, e: losses[e], math.inf),
        "gradient_norm": recorded(lambda _, points, gradients, e: gradients[e].norm(), math.nan),
        "weight_norms": recorded(
            lambda _, points, gradients, e: [w.norm() for w in points[e].flatten(0, 1)],
            [math.nan] * 4,
        ),
        "kept_weights": recorded(
            lambda _, points, gradients, e: points[e].tolist(),
            torch.full_like(starts[0], math.nan).tolist(), kept,
        ),
    }  # fmt: skip
    for name, values in exact.items():
        torch.testing.assert_close(
            getattr(path, name).cpu(), values, rtol=1e-10, atol=0, equal_nan=True
        )
    final = torch.stack([run[1][end or 7] for run, end in zip(alone, ends, strict=True)])
    torch.testing.assert_close(path.weights.flatten(0, 1), final, rtol=1e-10, atol=0)
    assert path.epochs.tolist() == epochs and path.kept.tolist() == kept
    assert path.diverged_at.tolist() == [[-1] * 3, ends[3:]]
    assert path.diverged.tolist() == [[False] * 3, [True] * 3]
    each = [0.01] * 3 + [1.0] * 3
    columns = {
        "epoch": [epoch for epoch in epochs for _ in range(6)],
        "row": list(range(6)) * 4,
        "learning_rate": each * 4,
        "loss": path.loss.flatten().tolist(),
        "gradient_norm": path.gradient_norm.flatten().tolist(),
        "mean_weight_norm": exact["weight_norms"].mean(3).flatten().tolist(),
    }
    table = path.table()
    assert list(table) == list(columns)
    for name, values in columns.items():
        assert table[name].tolist() == pytest.approx(values, rel=1e-10, nan_ok=True)
    shown = {name: list(values) for name, values in path.shown().items()}
    assert shown == {
        "row": list(range(6)), "learning_rate": each, "first_loss": path.loss[0].flatten().tolist(),
        "last_loss": path.final_loss.flatten().tolist(), "diverged_at": ends,
    }  # fmt: skip
    assert torch.equal(path.final_loss, path.loss[3])
    level = path.loss[2, 0].max().item()
    first = [next((e for e, loss in zip(epochs, losses, strict=True) if loss <= level), -1)
             for losses in path.loss.flatten(1).T.tolist()]  # fmt: skip
    assert path.reached(level).flatten().tolist() == first and len(set(first)) > 2


MODES = {"plain": contextlib.nullcontext, "no-grad": torch.no_grad, "infer": torch.inference_mode}


@pytest.mark.parametrize("mode", MODES)
def test_nothing_of_the_caller_is_changed(mode, generator, device):
    net = rt.initialize(rt.ShortcutNet(3, 2, 2, mid="relu"), "xavier", generator=generator)
    before = net.weights.detach().clone()
    data = problem(3, 30, device, generator)
    start = drawn("near_zero", (2,), net, generator, device).requires_grad_()
    copy, state = start.clone(), torch.get_rng_state()
    with MODES[mode]():
        path = rt.gradient_descent(
            net, "square", data, weights=start, learning_rate=0.05, epochs=5
        )  # fmt: skip
    assert not path.loss.requires_grad and not path.weights.requires_grad
    assert torch.equal(start, copy) and torch.equal(net.weights, before)
    assert net.weights.grad is None and torch.equal(torch.get_rng_state(), state)


# -- curvature along the way -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mid", "loss"), [(None, "square"), ("tanh", "square"), (None, "cross_entropy")]
)
def test_spectra_are_those_of_the_weights(mid, loss, generator, device):
    net = rt.ShortcutNet(3, 2, 2, mid=mid, device=device)
    x, y = problem(3, 30, device, generator)
    data = x, y.softmax(1)
    starts = drawn("near_zero", (2,), net, generator, device)
    given = dict(weights=starts, learning_rate=0.1, epochs=30, record_every=5, keep=[0, 10, 30])
    path = rt.gradient_descent(net, loss, data, **given)
    torch.set_default_dtype(torch.float32)
    rounded = rt.ShortcutNet(3, 2, 2, mid=mid, dtype=torch.float32)  # its own weights do not matter
    found = hessian_trajectory(rounded, loss, data, path, row=(1,))
    assert found.epochs.tolist() == [0, 10, 30]
    for i, record in enumerate([0, 2, 6]):
        with torch.no_grad():
            net.weights.copy_(path.kept_weights[i, 1])
        own = rt.hessian_spectrum(net, loss, data)
        assert found.spectra[i].distance(own) <= round_off(1000)
        assert found.each(lambda s: s.max_magnitude)[i] == found.spectra[i].max_magnitude
        assert found.loss[i] == path.loss[record, 1]
        assert found.gradient_norm[i] == path.gradient_norm[record, 1]
        values = own.eigenvalues
        exact = {
            "epoch": 5 * record, "loss": found.loss[i], "gradient_norm": found.gradient_norm[i],
            "largest": values[-1], "smallest": values[0],
            "condition_number": own.condition_number, "index": own.index,
        }  # fmt: skip
        table = found.table()
        assert list(table) == list(exact)
        assert [float(table[name][i]) for name in exact] == pytest.approx(
            [float(value) for value in exact.values()], rel=1e-9
        )


@pytest.mark.parametrize("logarithmic", [True, False])
def test_values_are_interpolated_at_the_first_crossing(logarithmic):
    loss, values = [8.0, 4.0, 5.0, 2.0, 1.0], [1.0, 3.0, 7.0, 9.0, 2.0]
    exact = at_loss(loss, values, loss, logarithmic=logarithmic)
    assert exact[[0, 1, 3, 4]].tolist() == pytest.approx([1.0, 3.0, 9.0, 2.0], rel=round_off(10))
    between = at_loss(loss, values, [4.0, 32**0.5, 3.0], logarithmic=logarithmic)
    share = np.log(5 / 3) / np.log(5 / 2)  # 3 lies between the third and the fourth
    expected = [3.0, 3**0.5, 7 ** (1 - share) * 9**share]
    if not logarithmic:
        expected = [3.0, 2.0, 7 * (1 - share) + 9 * share]
    assert between.tolist() == pytest.approx(expected, rel=round_off(100))
    assert at_loss(loss, values, [9.0, 0.5], logarithmic=logarithmic).isnan().all()
    single = at_loss([8.0], [4.0], [8.0, 9.0, 7.0], logarithmic=logarithmic)  # between no two
    assert single.tolist() == pytest.approx([4.0, math.nan, math.nan], nan_ok=True)


def test_spectra_stop_where_a_row_diverged(generator, device):
    net = rt.ShortcutNet(3, 2, 2)
    data = problem(3, 30, "cpu", generator)  # follows the weights
    start = drawn("near_zero", (), net, generator, device)
    path = rt.gradient_descent(
        net, "square", data, weights=start, learning_rate=1e4, epochs=9, keep=[0, 9]
    )
    assert hessian_trajectory(net, "square", data, path).epochs.tolist() == [0]


@pytest.mark.parametrize(
    ("change", "row", "message"),
    [
        (dict(keep=[]), (), "kept no weights"),
        (dict(keep=[1]), (0,), "row: got"),
        (dict(keep=[1], record_every=2), (), "not on record"),
    ],
    ids=["kept", "row", "record"],
)
def test_a_wrong_path_or_row_is_named(change, row, message):
    path = rt.gradient_descent(NET, "square", MOMENTS, **{**GOOD, "epochs": 2, **change})
    with pytest.raises(ValueError, match=message):
        hessian_trajectory(NET, "square", MOMENTS, path, row=row)


# -- errors ----------------------------------------------------------------------------------------

NET = rt.ShortcutNet(3, 2, 2)
MOMENTS = rt.Moments(sxx=torch.eye(3), syx=torch.eye(3), syy=torch.eye(3), count=1)
GOOD = dict(weights=torch.zeros(2, 2, 3, 3, dtype=torch.float64), learning_rate=0.1, epochs=1)
WIDE = dict(weights=torch.zeros(2, 2, 4, 4, dtype=torch.float64))
APART = dict(weights=torch.zeros(3, 2, 2, 3, 3), learning_rate=[0.1, 0.2])
WRONG = [
    (NET, dict(weights=torch.zeros(2, 3, 3)), "weights: got shape"),
    (NET, dict(learning_rate=[0.1, -1.0]), "learning_rate: got -1"),
    (NET, dict(learning_rate=0.0), "learning_rate: got 0, needs numbers above 0"),
    (NET, dict(weights=torch.zeros(2, 2, 3, 3).long()), "weights: .* dtype torch.int64, needs"),
    (NET, APART, "does not broadcast"),
    (NET, dict(weights=torch.zeros(0, 2, 2, 3, 3)), r"got shapes \(0, 2, .* which make no row"),
    (NET, dict(learning_rate=[]), r"and \(0,\), which make no row; needs at least one"),
    (NET, dict(epochs=-1), "epochs: got -1"),
    (NET, dict(keep=[0, 2]), "keep: got epoch 2"),
    (NET, dict(keep=[-1]), "keep: got -1"),
    (NET, dict(limit=0.0), "limit: got 0.0"),
    (NET, dict(record_every=0), "record_every: got 0"),
    (rt.ShortcutNet(3, 2, 2, bias=True), {}, "has a bias"),
    (rt.ShortcutNet(3, 2, 2, mid="relu"), {}, "data: got Moments"),
    (torch.nn.Linear(3, 3), {}, "net: got Linear"),
    (rt.ShortcutNet(4, 2, 2), WIDE, "data: has 3"),
]


@pytest.mark.parametrize(("net", "change", "message"), WRONG, ids=[row[2] for row in WRONG])
def test_wrong_input_is_named(net, change, message):
    with pytest.raises(ValueError, match=message):
        rt.gradient_descent(net, "square", MOMENTS, **{**GOOD, **change})
