"""Trainings of claims: parts that may be stopped and resumed, and the trained nets in them."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure

import resid_theory as rt
from experiments import parts, shipped
from experiments.adoption import adopt
from experiments.confirmation import confirm
from experiments.criteria import decided
from experiments.demystifying_resnet import preactivation
from experiments.noise_stability.nets import start_net, training_of
from experiments.parts import Execution, Finished, StoppedError, Store, float32_by_default
from experiments.provenance import run_information
from experiments.recompute import evaluated, part_item
from experiments.trainings import Fit, Training, fits, measured

RECIPE = rt.Recipe(epochs=2, batch=8, lr=0.01, milestones=(), augmentation="none")
NET = {"builder": "diracnet", "arguments": {"depth": 10, "generator": 0}}
SMALL = Training(architecture=NET, recipe=RECIPE, data="digits", samples=24, tests=20, size=8)


def equal(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], strict=True, err_msg=name)


@pytest.fixture(scope="module")
def whole():
    """The result of the small training in one piece."""
    return SMALL.arrays("cpu")


def test_a_training_that_is_stopped_twice_is_that_of_one_piece(whole, tmp_path):
    store = Store(tmp_path)
    for last in (2, 4):
        with pytest.raises(StoppedError, match="Training.*was stopped"):
            store.compute(SMALL, Execution(stop=lambda step, last=last: step >= last))
        assert store.find(SMALL) is None
    assert store.compute(SMALL, Execution()).arrays.keys() == whole.keys()
    equal(store.find(SMALL, weights=True).arrays, whole)
    # Without momentum and other states of the training, in the form of saved nets.
    files = sorted(path.name.split(".")[0] for path in store.own.place(SMALL.key).iterdir())
    assert files == ["", "result", "result", "weights", "weights"]  # and the lock
    net = rt.load_checkpoint(store.own.place(SMALL.key) / "weights.json")
    assert torch.equal(net[0].weight, torch.tensor(whole["net.conv0.weight"]))


def test_a_result_has_the_log_and_the_measures_of_the_final_weights(whole):
    fit = Fit(training=SMALL, arrays=whole)
    assert len(fit.along("loss")) == 2 and len(whole["log.mean_norm"]) == 3
    assert whole["first_losses"].shape == (6,) and np.isnan(whole["log.loss"][0])
    net, test = fit.net, SMALL.images("test")
    output = net(test.inputs(test.pixels, torch.float32)).double()
    assert fit.number("test_loss") == pytest.approx(F.cross_entropy(output, test.labels).item())
    assert fit.number("test_error") == (output.argmax(1) != test.labels).double().mean().item()
    assert fit.along("test_error")[-1] == pytest.approx(fit.number("test_error"))
    assert fit.number("parameters") == sum(p.numel() for p in net.parameters())
    # The numbers of an epoch are those of the net at that time.
    assert {f"log.{name}" for name in measured(net)} <= set(whole)
    assert whole["log.a.conv1"][-1] == measured(net)["a.conv1"]


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"seed": 1}, False),
        ({"recipe": RECIPE.change(lr=0.02)}, False),
        ({"recipe": RECIPE.change(precision="tf32")}, False),
        ({"recipe": RECIPE.change(channels_last=True, compile="graph")}, True),
        ({"architecture": {**NET, "arguments": {"depth": 10, "generator": 1}}}, False),
        ({"architecture": {**NET, "arguments": {**NET["arguments"], "width": 1}}}, True),
        ({"samples": 16}, False),
        ({"initial": {"law": "normal", "scale": 0.01}}, False),
    ],
    ids=str,
)
def test_the_key_is_that_of_what_is_computed(changes, same):
    assert (replace(SMALL, **changes).key == SMALL.key) == same


def test_other_versions_of_a_training_have_other_keys(monkeypatch):
    before = SMALL.key
    monkeypatch.setattr(Training, "VERSION", 2)
    assert SMALL.key != before


def test_initial_weights_do_not_depend_on_the_callers_default():
    assert torch.get_default_dtype() == torch.float64
    made = training_of("transferred", 5, 3, epochs=1).start()
    torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(
        list(made.parameters()), list(start_net("transferred", 5, 3).parameters())
    )


def test_weights_must_be_asked_for(whole):
    bare = {name: array for name, array in whole.items() if not name.startswith("net.")}
    with pytest.raises(ValueError, match="weights: the claim did not ask"):
        _ = Fit(training=SMALL, arrays=bare).net
    with pytest.raises(ValueError, match="speed: .* did not log it"):
        Fit(training=SMALL, arrays=bare).along("speed")


def test_results_come_in_groups():
    other = replace(SMALL, seed=1)
    asked = []

    def each(parts, device, *, weights=False):
        asked.append((list(parts), weights))
        return [{"loss": np.array(part.seed)} for part in parts]

    found = fits({"a": [SMALL], "b": [other, SMALL], "c": []}, each, "cpu", weights=True)
    assert {name: [fit.number("loss") for fit in row] for name, row in found.items()} == {
        "a": [0], "b": [1, 0], "c": [],
    }  # fmt: skip
    assert asked == [([SMALL, other, SMALL], True)]


# -- pre-activation nets on images -----------------------------------------------------------------

TINY = {
    "seeds": [0], "epochs": 1, "data": "digits", "samples": 16, "tests": 16, "size": 8, "batch": 8,
}  # fmt: skip


def test_mean_norm_is_that_of_the_kernels_inside_blocks():
    net = rt.preresnet(10, generator=0)
    kernels = [p for n, p in net.named_parameters() if n.endswith("weight") and "branch" in n]
    norms = [p.detach().norm() for p in kernels if p.dim() == 4 and p.shape[-1] == 3]
    assert len(norms) == 6
    assert measured(net)["mean_norm"] == pytest.approx(float(sum(norms) / 6), rel=1e-6)


def test_figures_of_pre_activation_nets_run_end_to_end():
    norms = preactivation.compute_figure_2(depths=[10, 16], training=TINY)
    assert norms["norm"].shape == (2, 1, 2) and norms["loss"].shape == (2, 1, 1)
    assert (norms["norm"][..., 0] != norms["norm"][..., 1]).all()
    losses = preactivation.compute_figure_9(depths=[40], training=TINY)
    assert losses["loss"].shape == (4, 1, 1) and np.isfinite(losses["loss"]).all()
    for arrays, figure in ((norms, "2"), (losses, "9")):
        drawn = Figure()
        getattr(preactivation, f"draw_figure_{figure}")(drawn, arrays)
        assert drawn.axes
        assert getattr(preactivation, f"judge_figure_{figure}")(arrays)


def holding(judge, arrays):
    return [criterion.holds for criterion in decided(judge(arrays))]


SEEDS = np.array([1.0, 1.01, 0.99, 1.02, 0.98, 1.0])


def test_figure_2_is_judged_by_the_end_and_by_the_epochs_before():
    norm = np.array([[8.0] + [8.0] * 5, [8.0] + [7.0] * 5])[:, None] * SEEDS[:, None]
    above, end = norm.copy(), norm.copy()
    above[1, :, 1:5], end[1, :, -1] = 9.0, 9.0
    answers = [
        holding(preactivation.judge_figure_2, {"depth": [10, 22], "norm": a})
        for a in (norm, above, end, norm[::-1], norm[:, :1])
    ]
    assert answers == [[True, True], [True, False], [False, True], [False, False], [None, None]]


@pytest.mark.parametrize(
    ("loss", "holds"),
    [
        ([[2.8, 3], [2, 1], [2.8, 3], [3, 4]], [True] * 5),
        ([[2.8, 3], [2, 2.2], [2.8, 3], [3, 4]], [True, False, True, True, True]),
        ([[3, 2], [2, 1], [2.8, 3], [3, 4]], [False, True, True, True, True]),
        ([[0.4, 0.5], [2, 1], [2.8, 3], [3, 4]], [True, True, True, True, False]),
    ],
)
def test_figure_9_asks_that_only_shortcut_depth_2_gains(loss, holds):
    spread = np.stack([SEEDS, SEEDS[::-1]])
    arrays = {
        "depth": np.array([40, 112]),
        "shortcut_depth": np.arange(1, 5),
        "loss": np.array(loss, dtype=float)[..., None] * spread,
        "parameters": np.full((4, 2), 7),
    }
    assert holding(preactivation.judge_figure_9, arrays) == [True, *holds]


@pytest.mark.parametrize(
    ("recipe", "asked", "device", "used"),
    [
        ("bf16", None, "cpu", "float32"),
        ("bf16", None, "cuda", "bf16"),
        ("tf32", "float32", "cuda", "float32"),
        ("bf16", "bf16", "cpu", "bf16"),
        ("float64", None, "cpu", "float64"),
        ("float32", "tf32", "cuda", None),
    ],
)
def test_precision_is_no_coarser_than_the_recipe_allows(recipe, asked, device, used):
    part = replace(SMALL, recipe=RECIPE.change(precision=recipe))
    execution = Execution(device=device, precision=asked)
    if used is None:
        with pytest.raises(ValueError, match="precision.*'tf32'.*'float32'"):
            part.means(execution)
    else:
        coarse = device == "cuda" and used == "bf16"
        how = {"channels_last": coarse, "compile": "graph" if device == "cuda" else "none"}
        assert part.means(execution) == {"precision": used, **how}


# Older code ---------------------------------------------------------------------------------------


@pytest.fixture
def older(whole, tmp_path):
    """A store with the small training as other code has computed it on a machine of this kind."""
    own = Store(tmp_path / "own")

    def keep(**changes):
        record = {**run_information("cpu", 1.0), **SMALL.means(Execution()), "code": "other"}
        arrays = {**whole, **{k: changes.pop(k) for k in ("first_losses",) if k in changes}}
        own.write(SMALL, Finished(arrays=arrays, record={**record, **changes}))
        return own

    return keep


def test_a_part_of_todays_code_is_known(tmp_path):
    own = Store(tmp_path)
    assert own.compute(SMALL, Execution()).age(SMALL) == "today's code"
    assert own.find(SMALL).age(SMALL) == "today's code"


def test_a_replay_on_a_machine_of_the_same_kind_is_exact(older, whole):
    own = older()
    assert own.find(SMALL).age(SMALL) == "older code"
    found = confirm(SMALL, own)
    assert found.exact and found.steps == len(whole["first_losses"]) == 6 and not found.gap
    assert own.find(SMALL).age(SMALL) == "older code, confirmed"


@pytest.mark.parametrize(
    ("relative", "hardware", "gap"),
    [
        (1e-9, None, "not equal to the last bit"),
        (1e-7, "another processor", ""),
        (1e-2, "another processor", "gap .* of the first losses"),
    ],
)
def test_a_replay_elsewhere_is_within_bounds(older, whole, relative, hardware, gap):
    there = {"hardware": hardware} if hardware else {}
    own = older(first_losses=whole["first_losses"] * (1 + relative), **there)
    found = confirm(SMALL, own)
    assert re.match(gap, found.gap) if gap else not found.gap
    assert not found.exact
    assert own.find(SMALL).age(SMALL) == ("older code" if gap else "older code, confirmed")


@pytest.mark.parametrize(("relative", "fault"), [(1e-7, ""), (1e-2, "gap")])
def test_a_part_of_another_device_is_replayed_here(older, whole, relative, fault):
    there = {"device": "cuda", "hardware": "NVIDIA H200"}
    own = older(first_losses=whole["first_losses"] * (1 + relative), **there)
    item = part_item(SMALL, own.find(SMALL))
    found, told = item.compare()
    assert found.startswith(fault) and bool(found) == bool(fault)
    assert told == "first 6 losses within bounds" and not item.reason


@pytest.mark.parametrize("factor", [1.0, 0.9])
def test_a_net_that_ships_has_the_loss_of_its_part(whole, factor):
    arrays = {**whole, "test_loss": whole["test_loss"] * factor}
    fault, _ = evaluated(SMALL, Finished(arrays=arrays, record={}))
    assert bool(fault) == (factor != 1.0)


def test_a_part_that_cannot_be_checked_says_so(older):
    item = part_item(SMALL, older(first_losses=np.zeros(0)).find(SMALL))
    assert item.reason == "it kept no first losses, and its net does not ship"


def test_what_cannot_be_replayed_is_told(older, tmp_path):
    with pytest.raises(ValueError, match="kept no first losses"):
        confirm(SMALL, older(first_losses=np.zeros(0)))
    with pytest.raises(ValueError, match="is not finished"):
        confirm(SMALL, Store(tmp_path / "empty"))


# Folders of rt.train, and nets that ship ----------------------------------------------------------


@pytest.fixture
def trained_folder(tmp_path):
    """A folder of ``rt.train`` with the small training, of some steps."""

    def train(steps=100, data=None):
        with float32_by_default():
            data = SMALL.images("train") if data is None else data
            rt.train(
                SMALL.start(), data, RECIPE, seed=0, test=SMALL.images("test"), device="cpu",
                out=tmp_path / "trained", stop=lambda step: step >= steps, progress=False,
            )  # fmt: skip
        return tmp_path / "trained"

    return train


def test_a_folder_of_a_training_is_adopted_as_the_part_that_it_is(trained_folder, whole, tmp_path):
    own, told = Store(tmp_path / "own"), {"commit": "9d7c", "hardware": "a processor"}
    allowed = replace(SMALL, recipe=RECIPE.change(precision="bf16"))  # float32 is more exact
    assert adopt(trained_folder(), [replace(SMALL, seed=1), allowed], own, told) is allowed
    found = own.find(allowed, weights=True)
    for name in ("log.loss", "first_losses", "test_loss", "net.conv3.bias", "net.fc.weight"):
        if name in whole:
            np.testing.assert_array_equal(found.arrays[name], whole[name], err_msg=name)
    assert found.record["commit"] == "9d7c" and found.record["precision"] == "float32"
    assert found.age(allowed) == "older code"


def test_a_folder_that_is_no_finished_part_is_refused(trained_folder, tmp_path):
    own = Store(tmp_path / "own")
    with pytest.raises(ValueError, match="is at step 3, needs its end"):
        adopt(trained_folder(3), [SMALL], own, {})
    with pytest.raises(ValueError, match="no claim asks for this training"):
        adopt(trained_folder(), [replace(SMALL, seed=1)], own, {})
    other = replace(SMALL, samples=16)
    with pytest.raises(ValueError, match="data with sha256"):
        adopt(trained_folder(), [other], own, {})


def test_a_net_ships_under_its_name(whole, tmp_path, monkeypatch):
    for module in (parts, shipped):
        monkeypatch.setattr(module, "CHECKPOINTS", tmp_path / "checkpoints")
    monkeypatch.setattr(shipped, "COMMITTED", tmp_path / "committed")
    monkeypatch.setattr(shipped, "NETS", {"small": SMALL})
    own = Store(tmp_path / "own")
    with pytest.raises(ValueError, match="is not finished with its weights"):
        shipped.ship("small", 2, own)
    own.write(SMALL, Finished(arrays=whole, record={"seconds": 1.0}))
    path = shipped.ship("small", 2, own)
    assert path == tmp_path / "checkpoints" / "paper_scale" / "small.json"
    assert torch.equal(rt.load_checkpoint(path).fc.weight, torch.tensor(whole["net.fc.weight"]))
    committed = Store(None, tmp_path / "committed")
    equal(committed.find(SMALL, weights=True).arrays, whole)
    # The weights are there once.
    assert not list((tmp_path / "committed").rglob("weights.*"))
