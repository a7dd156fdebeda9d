"""Wrong calls, and what each must be told: the argument, what was given, what is needed.

A row is a call and the words its one error must hold, the argument's name first. The calls are
mistakes that people make: names misspelt, shapes transposed, counts of zero, batches for a net of
another width, files that are not there, options that do not go together.
"""

import contextlib
import io
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

import resid_theory as rt
from benchmarks.outcome import Outcome, judged, refused
from resid_theory.data import one_hot, whiten
from resid_theory.identity import id_entries, identity_kernel, with_identity
from resid_theory.plots import by_depth

Call = tuple[Callable[[], object], tuple[str, ...]]

X = torch.linspace(-1, 1, 60, dtype=torch.float64).view(20, 3).sin()
Y = X.flip(1)
LABELS = torch.arange(20) % 3
PIXELS = torch.arange(4 * 3 * 8 * 8).view(4, 3, 8, 8).remainder(251).to(torch.uint8)


def net() -> nn.Module:
    """Three inputs, three outputs, float64."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()


def shortcut() -> rt.ShortcutNet:
    """Two blocks of width three."""
    return rt.ShortcutNet(3, 2, 2)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def training(**changes: object) -> object:
    """A training of a small net with some arguments changed."""
    given = {"net": net(), "data": (X, LABELS), "recipe": recipe(), "seed": 0, **changes}
    first, data, how = given.pop("net"), given.pop("data"), given.pop("recipe")
    return rt.train(first, data, how, progress=False, device="cpu", **given)


def recipe(**changes: object) -> rt.Recipe:
    settings = {"epochs": 1, "batch": 5, "lr": 0.1, "augmentation": "none", "precision": "float64"}
    return rt.Recipe(**{**settings, "milestones": (), **changes})


def conv_net() -> nn.Module:
    return rt.simplified_net(8)


NAN = X.clone()
NAN[3, 1] = float("nan")

API: dict[str, Call] = {
    # nets and weights
    "width of zero": (lambda: rt.ShortcutNet(0, 2, 2), ("width", "0", "at least 1")),
    "blocks of 2.5": (lambda: rt.ShortcutNet(3, 2.5, 2), ("blocks", "2.5", "whole number")),
    "activation misspelt": (
        lambda: rt.ShortcutNet(3, 2, 2, mid="rleu"),
        ("mid", "'rleu'", "'relu'"),
    ),
    "inputs of another width": (lambda: shortcut()(X[:, :2]), ("x", "(20, 2)", "3")),
    "start misspelt": (
        lambda: rt.initialize(shortcut(), "xaver", generator=generator()),
        ("'xaver'", "'xavier'"),
    ),
    "scale below zero": (
        lambda: rt.initialize(shortcut(), "near_zero", generator=generator(), scale=-1.0),
        ("scale", "-1.0", "above 0"),
    ),
    "a seed for a generator": (
        lambda: rt.initialize(shortcut(), "xavier", generator="0"),
        ("generator", "'0'", "torch.Generator"),
    ),
    "start of a module": (
        lambda: rt.initialize(net(), "xavier", generator=generator()),
        ("net", "Sequential", "ShortcutNet"),
    ),
    "depth that is no 3n + 2": (lambda: rt.simplified_net(21), ("depth", "21", "20")),
    "depth that is no 6n + 4": (lambda: rt.diracnet(30), ("depth", "30", "28")),
    "ImageNet of another depth": (lambda: rt.diracnet_imagenet(50), ("depth", "50", "34")),
    "identity misspelt": (
        lambda: rt.simplified_net(20, identity="residul"),
        ("identity", "'residul'", "'residual'"),
    ),
    "classes of zero": (lambda: rt.full_net(8, classes=0), ("classes", "0", "at least 1")),
    "width of minus one": (lambda: rt.preresnet(10, width=-1), ("width", "-1", "at least 1")),
    # identity
    "even kernel": (
        lambda: with_identity(nn.Conv2d(4, 4, 2), "residual"),
        ("kernel", "2", "odd"),
    ),
    "channels that do not repeat": (
        lambda: id_entries((5, 3, 3, 3), padding=1),
        ("5", "3", "multiple"),
    ),
    "rule misspelt": (
        lambda: identity_kernel((4, 4, 3, 3), rule="repeet"),
        ("rule", "'repeet'", "'repeat'"),
    ),
    "kind misspelt": (
        lambda: with_identity(nn.Linear(3, 3), "resdual"),
        ("kind", "'resdual'", "'residual'"),
    ),
    "an identity in no layer": (
        lambda: with_identity(nn.ReLU(), "residual"),
        ("layer", "ReLU", "Linear"),
    ),
    "an identity twice": (
        lambda: with_identity(with_identity(nn.Linear(3, 3), "residual"), "dirac"),
        ("layer", "parametrized already", "needs a plain weight"),
    ),
    # data
    "data set misspelt": (lambda: rt.load_whitened("digts"), ("name", "'digts'", "'digits'")),
    "more components than rank": (
        lambda: rt.load_whitened("digits", components=62),
        ("components", "62", "61"),
    ),
    "components of zero": (lambda: whiten(X, 0), ("components", "0", "at least 1")),
    "components of a vector": (lambda: whiten(X[0], 1), ("x", "(3,)", "matrix")),
    "labels beyond the classes": (lambda: one_hot(LABELS, 2), ("labels", "2", "0")),
    "labels that are fractions": (
        lambda: one_hot(torch.tensor([0.5, 1.0]), 2),
        ("labels", "0.5", "whole"),
    ),
    "samples that differ": (lambda: rt.Regression(X, Y[:5]), ("y", "5", "20", "same number")),
    "a NaN in the data": (lambda: rt.Regression(NAN, Y), ("x", "(3, 1)", "nan", "finite")),
    "words for data": (lambda: rt.Moments.of("digits"), ("data", "str", "pair")),
    "more images than there are": (
        lambda: rt.load_images("digits", samples=5000),
        ("samples", "5000", "1437"),
    ),
    "split misspelt": (
        lambda: rt.load_images("digits", "trian"),
        ("split", "'trian'", "'train'"),
    ),
    "a folder that is not there": (
        lambda: rt.load_image_folder("no/such/folder"),
        ("path", "no/such/folder", "one folder a class"),
    ),
    "images without labels": (
        lambda: training(data=rt.Images(pixels=PIXELS, labels=LABELS[:3])),
        ("data", "(4, 3, 8, 8)", "(3,)", "same number"),
    ),
    # theory
    "zero point of nothing": (
        lambda: rt.theory.zero_point((X[:0], Y[:0]), blocks=2, shortcut_depth=2),
        ("data", "without samples", "at least one"),
    ),
    "zero point without blocks": (
        lambda: rt.theory.zero_point((X, Y), blocks=0, shortcut_depth=2),
        ("blocks", "0", "at least 1"),
    ),
    "zero point of another loss": (
        lambda: rt.theory.zero_point((X, Y), blocks=2, shortcut_depth=2, loss="l2"),
        ("loss", "'l2'", "'square'"),
    ),
    "an activation that is not zero at zero": (
        lambda: rt.theory.zero_point((X, Y), blocks=2, shortcut_depth=2, mid="softplus"),
        ("mid", "0.693", "at zero"),
    ),
    "hidden width of one layer": (
        lambda: rt.theory.zero_point((X, Y), blocks=2, shortcut_depth=1, hidden=5),
        ("hidden", "5", "shortcut_depth"),
    ),
    "closed form of a nonlinear net": (
        lambda: rt.theory.linear_hessian(
            rt.ShortcutNet(3, 2, 2, mid="relu"), rt.Moments.of((X, Y))
        ),
        ("net", "relu", "linear"),
    ),
    "interpolation off the sphere": (
        lambda: rt.theory.interpolate(2 * X, X, units=50),
        ("x", "norm", "needs"),
    ),
    "interpolation on a circle": (
        lambda: rt.theory.interpolate(
            torch.eye(2, dtype=torch.float64), -torch.eye(2, dtype=torch.float64), units=50
        ),
        ("x", "2", "3"),
    ),
    # curvature
    "loss misspelt": (
        lambda: rt.hessian(net(), "cross_entrpy", (X, LABELS)),
        ("loss", "'cross_entrpy'", "'cross_entropy'"),
    ),
    "labels for the square loss": (
        lambda: rt.hessian(net(), "square", (X, LABELS)),
        ("data y", "(20,)", "(20, 3)"),
    ),
    "labels beyond the outputs": (
        lambda: rt.hessian(net(), "cross_entropy", (X, LABELS + 1)),
        ("data y", "3", "0"),
    ),
    "a sum for a loss": (
        lambda: rt.hessian(net(), nn.CrossEntropyLoss(reduction="sum"), (X, LABELS)),
        ("loss", "sum", "mean"),
    ),
    "a class for a net": (
        lambda: rt.hessian(nn.Linear, "square", (X, Y)),
        ("net", "type", "torch.nn.Module"),
    ),
    "inputs that the net does not take": (
        lambda: rt.hessian(net(), "square", (X[:, :2], Y)),
        ("data x", "(2,)", "3x4"),
    ),
    "inputs of another precision": (
        lambda: rt.hessian(net(), "square", (X.float(), Y.float())),
        ("data x", "float32", "float64"),
    ),
    "nothing that is trained": (
        lambda: rt.hessian(net().requires_grad_(False), "square", (X, Y)),
        ("net", "no trainable", "requires_grad=True"),
    ),
    "method misspelt": (
        lambda: rt.spectrum(net(), "square", (X, Y), method="matrix_free"),
        ("method", "'matrix_free'", "'matrix-free'"),
    ),
    "no eigenvalue at all": (
        lambda: rt.spectrum(net(), "square", (X, Y), k=0),
        ("k", "0", "at least 1"),
    ),
    "pairs below zero": (
        lambda: rt.eigenpairs(torch.eye(3, dtype=torch.float64), -1),
        ("k", "-1", "at least 1"),
    ),
    "tolerance of zero": (
        lambda: rt.eigenpairs(torch.eye(3, dtype=torch.float64), 1, tolerance=0.0),
        ("tolerance", "0.0", "above 0"),
    ),
    "a matrix that is not square": (
        lambda: rt.trace(torch.ones(3, 4, dtype=torch.float64)),
        ("A", "(3, 4)", "square"),
    ),
    "a matrix that is not symmetric": (
        lambda: rt.eigenpairs(torch.ones(5, 5, dtype=torch.float64).triu(), 1),
        ("A", "symmetric", "needs"),
    ),
    "density without steps": (
        lambda: rt.spectral_density(torch.eye(3, dtype=torch.float64), steps=0),
        ("steps", "0", "at least 1"),
    ),
    "vectors of another length": (
        lambda: rt.curvature_operator(net(), "square", (X, Y)) @ torch.ones(5, dtype=torch.float64),
        ("V", "(5,)", "31"),
    ),
    "a parameter misspelt": (
        lambda: rt.curvature_operator(net(), "square", (X, Y), parameters="0.wieght"),
        ("parameters", "'0.wieght'", "'0.weight'"),
    ),
    "a NaN among inputs": (
        lambda: rt.curvature_operator(net(), "square", (NAN, Y)),
        ("data x", "(3, 1)", "finite"),
    ),
    # equivalence and files
    "equivalence of other shapes": (
        lambda: rt.check_equivalence(net(), nn.Linear(3, 2).double(), X),
        ("net_b", "(20, 2)", "(20, 3)"),
    ),
    "steps without an optimizer": (
        lambda: rt.check_equivalence(net(), net(), X, steps=2),
        ("optimizer", "None", "function"),
    ),
    "fold in train mode": (
        lambda: rt.fold(rt.diracnet(10).train()),
        ("net", "statistics of each batch", "net.eval()"),
    ),
    "residual of a net without squares": (
        lambda: rt.to_residual(nn.Sequential(nn.ReLU())),
        ("layers", "none", "nn.Linear"),
    ),
    "a checkpoint that is nowhere": (
        lambda: rt.load_checkpoint("no_such_net"),
        ("name", "no_such_net", "RESID_THEORY_CHECKPOINTS"),
    ),
    "a folder without a training": (
        lambda: rt.resume("no/such/folder", (X, LABELS)),
        ("out", "no/such/folder", "train"),
    ),
    "authors' file that is nowhere": (
        lambda: rt.load_dirac_file("nothing.pt7"),
        ("nothing.pt7", "no file", "torch.save"),
    ),
    "authors' file of another net": (
        lambda: rt.save_dirac_file("a.pt7", conv_net()),
        ("net", "DiracNet", "needs"),
    ),
    # stability
    "cushions of a function": (
        lambda: rt.layer_cushions(torch.tanh, X),
        ("net", "builtin", "torch.nn.Module"),
    ),
    "norm misspelt": (
        lambda: rt.layer_cushions(net(), X, norm="kernal"),
        ("norm", "'kernal'", "'kernel'"),
    ),
    "a layer misspelt": (
        lambda: rt.layer_cushions(net(), X, layers=["3"]),
        ("layers", "'3'", "'0'"),
    ),
    "cushions of a path": (lambda: rt.layer_cushions(net(), "x.npy"), ("data", "str", "needs")),
    "cushions of nets that differ": (
        lambda: rt.compare_cushions(
            rt.layer_cushions(net(), X),
            rt.layer_cushions(nn.Sequential(net(), nn.Linear(3, 3).double()), X),
        ),
        ("b", "'1'", "'2'"),
    ),
    "from a layer that comes later": (
        lambda: rt.interlayer_cushions(net(), X, start="2", stop="0"),
        ("stop", "'0'", "'2'"),
    ),
    "flows of a net without paths": (
        lambda: rt.dominant_flows(net(), (X, LABELS)),
        ("net", "Sequential", "needs"),
    ),
    "mode misspelt": (
        lambda: rt.dominant_flows(conv_net(), rt.load_images("digits", samples=1), mode="saps"),
        ("mode", "'saps'", "'sap'"),
    ),
    # training
    "recipe misspelt": (
        lambda: rt.Recipe(epoch=3),
        ("recipe", "'epoch'", "'epochs'"),
    ),
    "learning rate of zero": (lambda: recipe(lr=0), ("lr", "0", "above 0")),
    "momentum of one": (lambda: recipe(momentum=1), ("momentum", "1", "[0, 1)")),
    "milestones that fall": (
        lambda: recipe(milestones=(5, 3)),
        ("milestones", "(5, 3)", "ascending"),
    ),
    "a dict for a recipe": (
        lambda: training(recipe={"epochs": 2}),
        ("recipe", "dict", "Recipe"),
    ),
    "a batch beyond the samples": (
        lambda: training(recipe=recipe(batch=50)),
        ("batch", "50", "20"),
    ),
    "labels beyond the classes of the net": (
        lambda: training(data=(X, LABELS + 5)),
        ("0", "7", "3"),
    ),
    "a seed below zero": (lambda: training(seed=-1), ("seed", "-1", "0")),
    "seeds for other nets": (lambda: training(seed=[1, 2]), ("seed", "2", "1")),
    "a device that is not there": (
        lambda: rt.train(net(), (X, LABELS), recipe(), seed=0, device="cuda:7"),
        ("device", "cuda:7", "cpu"),
    ),
    "crops of vectors": (
        lambda: training(recipe=recipe(augmentation="crop_flip")),
        ("augmentation", "(20, 3)", "images"),
    ),
    "descent for less than no epoch": (
        lambda: rt.gradient_descent(
            shortcut(),
            "square",
            (X, Y),
            weights=torch.zeros(2, 2, 3, 3),
            learning_rate=0.1,
            epochs=-1,
        ),
        ("epochs", "-1", "at least 0"),
    ),
    "descent at no rate": (
        lambda: rt.gradient_descent(
            shortcut(),
            "square",
            (X, Y),
            weights=torch.zeros(2, 2, 3, 3),
            learning_rate=-1.0,
            epochs=1,
        ),
        ("learning_rate", "-1", "above 0"),
    ),
    # spectra and drawings
    "a spectrum of nothing": (lambda: rt.Spectrum.of([]), ("eigenvalues", "0", "at least one")),
    "a percentile of 120": (
        lambda: rt.Spectrum.of([1.0, 2.0]).percentile_condition_number(120),
        ("percent", "120", "100"),
    ),
    "a curve without numbers": (
        lambda: by_depth([2, 4], {"a": [1.0]}, ylabel="number"),
        ("measured", "1", "2"),
    ),
}

CLI: dict[str, Call] = {
    "verb": (lambda: command("spektrum"), ("spektrum", "No such command")),
    "option": (lambda: command("spectrum --bloks 3"), ("--bloks", "No such option")),
    "blocks": (lambda: command("spectrum --blocks 0"), ("--blocks", "0", "at least 1")),
    "blocks in words": (lambda: command("spectrum --blocks two"), ("--blocks", "two", "integer")),
    "init": (lambda: command("spectrum --init xavir"), ("--init", "'xavir'", "'xavier'")),
    "data": (lambda: command("zero-point --data mnits"), ("--data", "'mnits'", "'mnist'")),
    "data file": (
        lambda: command("zero-point --data no.npz"),
        ("--data", "no.npz", "arrays x and y"),
    ),
    "data file of objects": (lambda: with_objects(), ("--data", "objects.npz", "plain arrays")),
    "seeds": (lambda: command("spectrum --seeds none"), ("--seeds", "'none'", "needs")),
    "checkpoint": (
        lambda: command("cushions --checkpoint nowhere --data digits"),
        ("--checkpoint", "nowhere", "RESID_THEORY_CHECKPOINTS"),
    ),
    "model": (
        lambda: command("cushions --model mynet --data digits"),
        ("--model", "'mynet'", "module:callable"),
    ),
    "both": (
        lambda: command("cushions --model a:b --checkpoint c --data digits"),
        ("--checkpoint", "both", "needs one"),
    ),
    "neither": (
        lambda: command("cushions --data digits"),
        ("--checkpoint", "neither", "needs one"),
    ),
    "fold": (lambda: command("fold --checkpoint no.pt7 --out a.json"), ("no.pt7", "--checkpoint")),
    "evaluate": (
        lambda: command("evaluate --checkpoint nowhere --data digits"),
        ("--checkpoint", "nowhere"),
    ),
}


class CommandError(ValueError):
    """What the command line said on standard error."""


def command(words: str) -> None:
    """Run the command line; its complaint as an error."""
    from resid_theory import cli

    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        code = cli.main(words.split())
    text = said.getvalue()
    if code and (text.count("\n") != 1 or not text.startswith("resid-theory: ")):
        raise AssertionError(f"said {text!r}")
    if code:
        raise CommandError(text.strip())


def with_objects() -> None:
    """A file of objects as data."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "objects.npz"
        np.savez(path, x=np.array([{}], dtype=object), y=np.zeros(1))
        command(f"zero-point --data {path}")


def rows(quick: bool = False) -> list[Outcome]:
    """One row for calls from Python, one for the command line."""
    promise = "one error that names the argument, what was given and what is needed"
    return [
        judged(
            fault,
            promise,
            [(name, lambda c=c, w=w: refused(c, says=w)) for name, (c, w) in calls.items()],
        )
        for fault, calls in (("wrong calls from Python", API), ("wrong command lines", CLI))
    ]


if __name__ == "__main__":
    for row in rows():
        print(row.fault, row.trials, *row.lost, sep="\n  ")
