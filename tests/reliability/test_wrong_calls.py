"""Wrong calls are told the argument, what was given and what is needed.

A row is a call and the words its one error must hold, the argument's name first. The calls are
mistakes that people make: names misspelt, shapes transposed, counts of zero, batches for a net of
another width, files that are not there, options that do not go together.
"""

import numpy as np
import pytest
import torch
from torch import nn
from trials import assert_refused

import resid_theory as rt
from resid_theory import cli
from resid_theory.data import one_hot, whiten
from resid_theory.identity import id_entries, identity_kernel, with_identity
from resid_theory.plots import by_depth

X = torch.linspace(-1, 1, 60, dtype=torch.float64).view(20, 3).sin()
Y = X.flip(1)
LABELS = torch.arange(20) % 3
PIXELS = torch.arange(4 * 3 * 8 * 8).view(4, 3, 8, 8).remainder(251).to(torch.uint8)
SPHERE = torch.eye(2, dtype=torch.float64)
UNIT = torch.eye(3, dtype=torch.float64)
NAN = X.clone()
NAN[3, 1] = float("nan")
PROMISE = "one error that names the argument, what was given and what is needed"


def small_net():
    """Three inputs, three outputs, float64."""
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()


def shortcut():
    """Two blocks of width three."""
    return rt.ShortcutNet(3, 2, 2)


def initialize(name, **changes):
    given = {"net": shortcut(), "generator": torch.Generator().manual_seed(0), **changes}
    return rt.initialize(given.pop("net"), name, **given)


def recipe(**changes):
    settings = {"epochs": 1, "batch": 5, "lr": 0.1, "augmentation": "none", "precision": "float64"}
    return rt.Recipe(**{**settings, "milestones": (), **changes})


def training(**changes):
    """A training of a small net with some arguments changed."""
    given = {
        "net": small_net(),
        "data": (X, LABELS),
        "recipe": recipe(),
        "seed": 0,
        "device": "cpu",
    }
    given |= changes
    first = [given.pop(name) for name in ("net", "data", "recipe")]
    return rt.train(*first, progress=False, **given)


def zero_point(data=(X, Y), blocks=2, shortcut_depth=2, **options):
    return rt.theory.zero_point(data, blocks=blocks, shortcut_depth=shortcut_depth, **options)


def hessian(net=None, loss="square", data=(X, Y)):
    return rt.hessian(net or small_net(), loss, data)


def equivalence(data):
    return rt.check_equivalence(rt.simplified_net(8), rt.simplified_net(8), data)


def operator(data=(X, Y), **options):
    return rt.curvature_operator(small_net(), "square", data, **options)


def descent(**changes):
    options = {"weights": torch.zeros(2, 2, 3, 3), "learning_rate": 0.1, "epochs": 1, **changes}
    return rt.gradient_descent(shortcut(), "square", (X, Y), **options)


CALLS = [
    (lambda: rt.ShortcutNet(0, 2, 2), "width | 0 | at least 1"),
    (lambda: rt.ShortcutNet(3, 2.5, 2), "blocks | 2.5 | whole number"),
    (lambda: rt.ShortcutNet(3, 2, 2, mid="rleu"), "mid | 'rleu' | 'relu'"),
    (lambda: shortcut()(X[:, :2]), "x | (20, 2) | 3"),
    (lambda: initialize("xaver"), "'xaver' | 'xavier'"),
    (lambda: initialize("near_zero", scale=-1.0), "scale | -1.0 | above 0"),
    (lambda: initialize("xavier", generator="0"), "generator | '0' | torch.Generator"),
    (lambda: initialize("xavier", net=small_net()), "net | Sequential | ShortcutNet"),
    (lambda: rt.simplified_net(21), "depth | 21 | 20"),
    (lambda: rt.diracnet(30), "depth | 30 | 28"),
    (lambda: rt.diracnet_imagenet(50), "depth | 50 | 34"),
    (lambda: rt.simplified_net(20, identity="residul"), "identity | 'residul' | 'residual'"),
    (lambda: rt.full_net(8, classes=0), "classes | 0 | at least 1"),
    (lambda: rt.preresnet(10, width=-1), "width | -1 | at least 1"),
    (lambda: with_identity(nn.Conv2d(4, 4, 2), "residual"), "kernel | 2 | odd"),
    (lambda: id_entries((5, 3, 3, 3), padding=1), "5 | 3 | multiple"),
    (lambda: identity_kernel((4, 4, 3, 3), rule="repeet"), "rule | 'repeet' | 'repeat'"),
    (lambda: with_identity(nn.Linear(3, 3), "resdual"), "kind | 'resdual' | 'residual'"),
    (lambda: with_identity(nn.ReLU(), "residual"), "layer | ReLU | Linear"),
    (
        lambda: with_identity(with_identity(nn.Linear(3, 3), "residual"), "dirac"),
        "layer | parametrized already | needs a plain weight",
    ),
    (lambda: rt.load_whitened("digts"), "name | 'digts' | 'digits'"),
    (lambda: rt.load_whitened("digits", components=62), "components | 62 | 61"),
    (lambda: whiten(X, 0), "components | 0 | at least 1"),
    (lambda: whiten(X[0], 1), "x | (3,) | matrix"),
    (lambda: one_hot(LABELS, 2), "labels | 2 | 0"),
    (lambda: one_hot(torch.tensor([0.5, 1.0]), 2), "labels | 0.5 | whole"),
    (lambda: rt.Regression(X, Y[:5]), "y | 5 | 20 | same number"),
    (lambda: rt.Regression(NAN, Y), "x | (3, 1) | nan | finite"),
    (lambda: rt.Moments.of("digits"), "data | str | pair"),
    (lambda: rt.load_images("digits", samples=5000), "samples | 5000 | 1437"),
    (lambda: rt.load_checkpoint(5), "name | 5 | path"),
    (lambda: rt.run_sweep({"task": "hessian", "blocks": 1}, 3), "folder | 3 | path"),
    (lambda: equivalence((rt.load_images("digits", samples=2),) * 2), "data x | Images"),
    (lambda: rt.load_images("digits", "trian"), "split | 'trian' | 'train'"),
    (lambda: rt.load_image_folder("no/such/folder"), "path | no/such/folder | folder per class"),
    (
        lambda: training(data=rt.Images(pixels=PIXELS, labels=LABELS[:3])),
        "labels | 3 | 4 images | same number",
    ),
    (lambda: zero_point((X[:0], Y[:0])), "data | without samples | at least one"),
    (lambda: zero_point(blocks=0), "blocks | 0 | at least 1"),
    (lambda: zero_point(loss="l2"), "loss | 'l2' | 'square'"),
    (lambda: zero_point(mid="softplus"), "mid | 0.693 | at zero"),
    (lambda: zero_point(shortcut_depth=1, hidden=5), "hidden | 5 | shortcut_depth"),
    (
        lambda: rt.theory.linear_hessian(
            rt.ShortcutNet(3, 2, 2, mid="relu"), rt.Moments.of((X, Y))
        ),
        "net | relu | linear",
    ),
    (lambda: rt.theory.interpolate(2 * X, X, units=50), "x | norm | needs"),
    (lambda: rt.theory.interpolate(SPHERE, -SPHERE, units=50), "x | 2 | 3"),
    (lambda: hessian(loss="cross_entrpy"), "loss | 'cross_entrpy' | 'cross_entropy'"),
    (lambda: hessian(data=(X, LABELS)), "data y | (20,) | (20, 3)"),
    (lambda: hessian(loss="cross_entropy", data=(X, LABELS + 1)), "data y | 3 | 0"),
    (
        lambda: hessian(
            small_net(),
            lambda o, y: nn.functional.cross_entropy(o, y).sqrt(),
            [(X[:9], LABELS[:9]), (X[9:], LABELS[9:])],
        ),
        "loss | mean | sum",
    ),
    (lambda: hessian(nn.Linear), "net | type | torch.nn.Module"),
    (lambda: hessian(data=(X[:, :2], Y)), "data x | (2,) | 3x4"),
    (lambda: hessian(small_net().requires_grad_(False)), "net | no trainable | requires_grad=True"),
    (
        lambda: rt.spectrum(small_net(), "square", (X, Y), method="matrix_free"),
        "method | 'matrix_free' | 'matrix-free'",
    ),
    (lambda: rt.spectrum(small_net(), "square", (X, Y), k=0), "k | 0 | at least 1"),
    (lambda: rt.eigenpairs(UNIT, -1), "k | -1 | at least 1"),
    (lambda: rt.eigenpairs(UNIT, 1, tolerance=0.0), "tolerance | 0.0 | above 0"),
    (lambda: rt.trace(torch.ones(3, 4, dtype=torch.float64)), "A | (3, 4) | square"),
    (
        lambda: rt.eigenpairs(torch.ones(5, 5, dtype=torch.float64).triu(), 1),
        "A | symmetric | needs",
    ),
    (lambda: rt.spectral_density(UNIT, steps=0), "steps | 0 | at least 1"),
    (lambda: operator() @ torch.ones(5, dtype=torch.float64), "V | (5,) | 31"),
    (lambda: operator(parameters="0.wieght"), "parameters | '0.wieght' | '0.weight'"),
    (lambda: operator((NAN, Y)), "data x | (3, 1) | finite"),
    (
        lambda: rt.check_equivalence(small_net(), nn.Linear(3, 2).double(), X),
        "net_b | (20, 2) | (20, 3)",
    ),
    (
        lambda: rt.check_equivalence(small_net(), small_net(), X, steps=2),
        "optimizer | None | function",
    ),
    (lambda: rt.fold(rt.diracnet(10).train()), "net | statistics of each batch | net.eval()"),
    (lambda: rt.to_residual(nn.Sequential(nn.ReLU())), "layers | none | nn.Linear"),
    (lambda: rt.load_checkpoint("no_such_net"), "name | no_such_net | RESID_THEORY_CHECKPOINTS"),
    (lambda: rt.resume("no/such/folder", (X, LABELS)), "out | no/such/folder | train"),
    (lambda: rt.load_dirac_file("nothing.pt7"), "nothing.pt7 | no such file | torch.save"),
    (lambda: rt.save_dirac_file("a.pt7", rt.simplified_net(8)), "net | DiracNet | needs"),
    (lambda: rt.layer_cushions(torch.tanh, X), "net | builtin | torch.nn.Module"),
    (lambda: rt.layer_cushions(small_net(), X, norm="kernal"), "norm | 'kernal' | 'kernel'"),
    (lambda: rt.layer_cushions(small_net(), X, layers=["3"]), "layers | '3' | '0'"),
    (lambda: rt.layer_cushions(small_net(), "x.npy"), "data | str | needs"),
    (
        lambda: rt.compare_cushions(
            rt.layer_cushions(small_net(), X),
            rt.layer_cushions(nn.Sequential(small_net(), nn.Linear(3, 3).double()), X),
        ),
        "b | '1' | '2'",
    ),
    (lambda: rt.interlayer_cushions(small_net(), X, start="2", stop="0"), "stop | '0' | '2'"),
    (lambda: rt.dominant_flows(small_net(), (X, LABELS)), "net | Sequential | needs"),
    (
        lambda: rt.dominant_flows(
            rt.simplified_net(8), rt.load_images("digits", samples=1), mode="saps"
        ),
        "mode | 'saps' | 'sap'",
    ),
    (lambda: rt.Recipe(epoch=3), "recipe | 'epoch' | 'epochs'"),
    (lambda: recipe(lr=0), "lr | 0 | above 0"),
    (lambda: recipe(momentum=1), "momentum | 1 | [0, 1)"),
    (lambda: recipe(milestones=(5, 3)), "milestones | (5, 3) | ascending"),
    (lambda: training(recipe={"epochs": 2}), "recipe | dict | Recipe"),
    (lambda: training(recipe=recipe(batch=50)), "batch | 50 | 20"),
    (lambda: training(data=(X, LABELS + 5)), "0 | 7 | 3"),
    (lambda: training(seed=-1), "seed | -1 | 0"),
    (lambda: training(seed=[1, 2]), "seed | 2 | 1"),
    (lambda: training(device="cuda:7"), "device | cuda:7 | cpu"),
    (lambda: training(recipe=recipe(augmentation="crop_flip")), "augmentation | (20, 3) | images"),
    (lambda: descent(epochs=-1), "epochs | -1 | at least 0"),
    (lambda: descent(learning_rate=-1.0), "learning_rate | -1 | above 0"),
    (lambda: rt.Spectrum.of([]), "eigenvalues | 0 | at least one"),
    (lambda: rt.Spectrum.of([1.0, 2.0]).percentile_condition_number(120), "percent | 120 | 100"),
    (lambda: by_depth([2, 4], {"a": [1.0]}, ylabel="number"), "measured | 1 | 2"),
]


@pytest.mark.reliability("wrong calls from Python", PROMISE)
@pytest.mark.parametrize(("call", "words"), CALLS, ids=[words for _, words in CALLS])
def test_call(call, words):
    assert_refused(call, says=words.split(" | "))


COMMANDS = {
    "spektrum": "spektrum | No such command",
    "spectrum --bloks 3": "--bloks | No such option",
    "spectrum --blocks 0": "--blocks | 0 | at least 1",
    "spectrum --blocks two": "--blocks | two | integer",
    "spectrum --init xavir": "--init | 'xavir' | 'xavier'",
    "zero-point --data mnits": "--data | 'mnits' | 'mnist'",
    "zero-point --data no.npz": "--data | no.npz | arrays x and y",
    "zero-point --data objects.npz": "--data | objects.npz | plain arrays",
    "spectrum --seeds none": "--seeds | 'none' | needs",
    "cushions --checkpoint nowhere --data digits": "--checkpoint | RESID_THEORY_CHECKPOINTS",
    "cushions --model mynet --data digits": "--model | 'mynet' | module:callable",
    "cushions --model a:b --checkpoint c --data digits": "--checkpoint | both | needs one",
    "cushions --data digits": "--checkpoint | neither | needs one",
    "fold --checkpoint no.pt7 --out a.json": "no.pt7 | --checkpoint",
    "evaluate --checkpoint nowhere --data digits": "--checkpoint | nowhere",
}


@pytest.mark.reliability("wrong command lines", PROMISE)
@pytest.mark.parametrize("words", COMMANDS)
def test_command(words, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    np.savez("objects.npz", x=np.array([{}], dtype=object), y=np.zeros(1))
    assert cli.main(words.split()) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.startswith("resid-theory: ")
    assert not [word for word in COMMANDS[words].split(" | ") if word not in said], said
