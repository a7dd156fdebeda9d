"""Training and evaluation: losses of any kind and data of any form, against steps by hand."""

import copy
import hashlib
from collections import UserDict

import pandas
import pytest
import torch
import torch.nn.functional as F
from oracles import noise
from small_trainings import fit
from tolerances import relative_error, round_off
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import resid_theory as rt
from resid_theory.losses import LOSSES, Loss
from resid_theory.training import Recipe, device_dataset
from resid_theory.training.device_dataset import DeviceDataset

SAME = round_off(1000)
X, LABELS = noise(22, 5, seed=1).double(), torch.arange(22) * 7 % 3
VALUES = noise(22, 3, seed=2).double()
RECIPE = Recipe(epochs=2, batch=8, lr=0.1, precision="float64", augmentation="none", milestones=())
PARTS = slice(9), slice(9, 11), slice(11, 22)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first, self.second = nn.Linear(5, 6), nn.Linear(6, 3)
        for parameter in self.parameters():
            nn.init.normal_(parameter, generator=generator)

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


def half_square(output, target):
    return 0.5 * (output - target).square().sum() / len(output)


def huber(output, target):
    return F.huber_loss(output, target, reduction="sum") / len(output)


def log_cosh(output, labels):
    """A function of the caller's on labels, a mean over samples."""
    return (output - F.one_hot(labels, 3)).cosh().log().sum() / len(output)


def cross_entropy(**settings):
    """The loss of torch as a module, and as a function for the computation by hand."""
    return nn.CrossEntropyLoss(**settings), lambda o, t: F.cross_entropy(o, t, **settings)


ROWS = F.one_hot(LABELS, 3).double()
IGNORED = torch.where(torch.arange(22) % 5 == 0, -100, LABELS)
AS_BYTE = torch.where(IGNORED < 0, 255, IGNORED)
CLASS_WEIGHTS = torch.tensor([0.5, 1.0, 4.0], dtype=torch.float64)
by_classes = cross_entropy(weight=CLASS_WEIGHTS)[1]


def looking(output, labels):
    """Looks at its values, as torch.vmap cannot."""
    return log_cosh(output, labels) * (2 if bool((output == output).all()) else 1)


# Loss and targets as the caller gives them; both by hand; what the loss divides by.
KINDS = {
    "cross_entropy": ("cross_entropy", LABELS, F.cross_entropy, LABELS, torch.ones(22)),
    "square": ("square", LABELS, half_square, ROWS, torch.ones(22)),
    "values": ("square", VALUES, half_square, VALUES, torch.ones(22)),
    "shares": ("cross_entropy", VALUES.softmax(1), F.cross_entropy, VALUES.softmax(1),
               torch.ones(22)),
    "mean square": (nn.MSELoss(), LABELS, F.mse_loss, ROWS, torch.ones(22)),
    "smoothed": (*cross_entropy(label_smoothing=0.1), LABELS, torch.ones(22)),
    "classes": (*cross_entropy(weight=CLASS_WEIGHTS), LABELS, CLASS_WEIGHTS[LABELS]),
    "ignored": ("cross_entropy", IGNORED, F.cross_entropy, IGNORED, (IGNORED != -100).double()),
    "ignored as 255": (*cross_entropy(ignore_index=255), AS_BYTE, (AS_BYTE < 3).double()),
    "sum": (*cross_entropy(reduction="sum"), LABELS, None),
    "classes by a function": (by_classes, LABELS, by_classes, LABELS, CLASS_WEIGHTS[LABELS]),
    "function": (log_cosh, LABELS, log_cosh, LABELS, torch.ones(22)),
    "looking": (looking, LABELS, looking, LABELS, torch.ones(22)),
    "new row": ("huber", LABELS, huber, ROWS, torch.ones(22)),
}  # fmt: skip
KINDS = {name: kind if len(kind) == 5 else (kind[0], kind[2], kind[1], *kind[2:])
         for name, kind in KINDS.items()}  # fmt: skip


@pytest.fixture(autouse=True)
def _huber(monkeypatch):
    """A third row in the table of losses, for values of the output's shape."""
    row = Loss(huber, targets="values", weights=lambda target: torch.ones(len(target)))
    monkeypatch.setitem(LOSSES, "huber", row)


def trained(data, **settings):
    """A training, the rows of each of its steps, and its first net."""
    net, rows = Net(), []
    before = copy.deepcopy(net)

    def note(module, inputs):
        if module.training:
            rows.append((inputs[0][:, None] == X[None]).all(-1).nonzero()[:, 1])

    net.first.register_forward_pre_hook(note)
    run = fit(net, data, RECIPE.change(**settings.pop("recipe", {})), **settings)
    return run, rows, before


def by_hand(net, rows, loss, targets, weights):
    """Weights after plain descent with momentum, and the mean loss of the last epoch."""
    recipe, losses = RECIPE, []
    velocity = [torch.zeros_like(p) for p in net.parameters()]
    for batch in rows:
        value = loss(net(X[batch]), targets[batch])
        losses.append((value.detach(), 1.0 if weights is None else weights[batch].sum()))
        gradients = torch.autograd.grad(value, list(net.parameters()))
        with torch.no_grad():
            for p, v, g in zip(net.parameters(), velocity, gradients, strict=True):
                v.mul_(recipe.momentum).add_(g + recipe.weight_decay * p)
                p -= recipe.lr * v
    last = losses[len(losses) // 2 :]
    total = 1.0 if weights is None else sum(w for _, w in last)
    return sum(v * w for v, w in last) / total


@pytest.mark.parametrize("kind", KINDS)
def test_training_descends_any_loss(kind, monkeypatch):
    monkeypatch.setattr(device_dataset, "_CHUNK", 7)  # samples whose weights are measured together
    given, targets, loss, by_loss, weights = KINDS[kind]
    data = X, targets
    run, rows, net = trained(data, recipe={"loss": given}, test=data)
    assert sorted(torch.cat(rows[:3]).tolist()) == list(range(22)) and len(rows) == 6
    mean = by_hand(net, rows, loss, by_loss, weights)
    for found, expected in zip(run.net.parameters(), net.parameters(), strict=True):
        assert relative_error(found, expected) < SAME
    line = run.metrics[-1]
    assert line["loss"] == pytest.approx(float(mean), rel=1e-12)
    output = net(X).detach()
    assert line["test_loss"] == pytest.approx(float(loss(output, by_loss)), rel=1e-12)
    if targets.is_floating_point():
        assert "error" not in line and "test_error" not in line
    else:
        counted = (targets >= 0) & (targets < 3)
        wrong = (output.argmax(1) != targets)[counted].double().mean()
        assert line["test_error"] == pytest.approx(float(wrong), rel=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_is_the_loss_of_all(kind):
    given, targets, loss, by_loss, _ = KINDS[kind]
    net = Net()
    expected = float(loss(net(X).detach(), by_loss))
    for data in ((X, targets), [(X[part], targets[part]) for part in PARTS]):
        found = rt.evaluate(net, data, loss=given, batch=5)
        assert found.loss == pytest.approx(expected, rel=1e-12)
        assert found.samples == 22
    if targets.is_floating_point():
        assert (found.labels, found.wrong) == (0, {})
    else:
        counted = (targets >= 0) & (targets < 3)
        assert found.labels == int(counted.sum())
        assert found.wrong == {1: int((net(X).argmax(1) != targets)[counted].sum())}


def test_what_a_sum_has_once_counts_once():
    """A part of a loss that does not grow with the samples, such as a penalty."""
    net, penalty = Net(), 3.0
    expected = float(F.cross_entropy(net(X).detach(), LABELS, reduction="sum")) + penalty

    def summed(output, labels):
        return F.cross_entropy(output, labels, reduction="sum") + penalty

    for batch in (5, 22):
        found = rt.evaluate(net, (X, LABELS), loss=summed, batch=batch)
        assert found.loss == pytest.approx(expected, rel=1e-12)


def test_a_loss_without_a_value_of_all_is_noted():
    run, *_ = trained((X, LABELS), recipe={"loss": contrastive})
    assert "loss is the mean over batches" in run.notes[0]


def test_sample_weights_count_in_an_evaluation():
    """A sample of weight 2 counts as if it were there twice."""
    net, weights = Net(), torch.arange(22) % 3
    twice = torch.repeat_interleave(torch.arange(22), weights)
    expected = F.cross_entropy(net(X[twice]), LABELS[twice]).item()
    data = rt.data.Data.of((X, LABELS), sample_weight=weights)
    assert rt.evaluate(net, data, batch=4).loss == pytest.approx(expected, rel=1e-12)


def weighted(weights):
    return rt.data.Data.of((X, LABELS), sample_weight=weights)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("kind", ["cross_entropy", "classes", "new row", "function", "looking"])
def test_a_training_weighs_samples(kind, count):
    """By the gradients of single samples, added by hand."""
    given, targets, loss, by_loss, own = KINDS[kind]
    weights = torch.arange(22).double() % 4
    data = rt.data.Data.of((X, targets), sample_weight=weights)
    run, rows, net = trained(data, recipe={"loss": given}, test=data)
    if count > 1:  # several nets by one order: that of the single one
        run = fit([Net(), Net()], data, RECIPE.change(loss=given), test=data)

    def mean(output, index):
        each = [loss(output[i : i + 1], by_loss[k : k + 1]) for i, k in enumerate(index)]
        share = weights[index] * own[index]
        return (torch.stack(each) * share).sum() / share.sum()

    expected = by_hand(net, rows, mean, torch.arange(22), weights * own)
    for trained_net in run.nets:
        for found, other in zip(trained_net.parameters(), net.parameters(), strict=True):
            assert relative_error(found, other) < SAME
    assert run.metrics[-1]["loss"] == pytest.approx(float(expected), rel=1e-12)
    whole = mean(net(X).detach(), torch.arange(22))
    assert run.metrics[-1]["test_loss"] == pytest.approx(float(whole), rel=1e-12)
    assert rt.evaluate(run.nets[0], data, loss=given).loss == pytest.approx(float(whole), rel=1e-12)


@pytest.mark.parametrize("kind", ["cross_entropy", "classes", "classes by a function", "sum"])
def test_numbers_are_the_same_under_any_default_dtype(kind):
    """Programs have float32; sums over samples are in float64 all the same."""
    given, targets, *_ = KINDS[kind]
    data = (X, targets) if kind == "sum" else weighted(torch.arange(22) % 3 + 0.1)
    nets, found = [Net(), Net()], []
    for net, dtype in zip(nets, (torch.float64, torch.float32), strict=True):
        torch.set_default_dtype(dtype)
        run = fit(net, data, RECIPE.change(loss=given), test=data)
        loss = rt.evaluate(net, data, loss=given, batch=5).loss
        found.append((run.metrics, run.first_losses.tolist(), loss))
        assert run.first_losses.dtype == torch.float64
    assert found[0] == found[1]


def test_a_training_in_float32_is_measured_in_float64():
    """Products with 7 or 22 samples and sums of squares would be rounded in float32."""

    def exact(net, _):
        squares = sum(p.detach().double().square().sum().item() for p in net.parameters())
        loss = F.cross_entropy(net(X.float()), LABELS).item()
        return {"exact penalty": 0.05 * squares, "exact loss": loss}

    recipe = RECIPE.change(precision="float32", batch=7, epochs=5, weight_decay=0.1)
    run = fit(Net(), (X, LABELS), recipe, test=(X, LABELS), callbacks=[exact])
    means = run.first_losses[0].view(5, 4) @ torch.tensor([7.0, 7, 7, 1]).double() / 22
    assert run.column("loss") == pytest.approx(means.tolist(), rel=1e-14)
    assert run.column("penalty") == pytest.approx(run.column("exact penalty"), rel=1e-14)
    assert run.column("test_loss") == pytest.approx(run.column("exact loss"), rel=1e-14)


def test_parts_in_which_no_label_counts_have_no_loss():
    """The mean over no labels is no number."""
    x, labels, net = X.repeat(3, 1), LABELS.repeat(3), Net()
    labels[:32] = -100
    expected = F.cross_entropy(net(x[32:]), labels[32:]).item()
    run = fit(net, (x, labels), test=(x, labels), recipe=RECIPE, stop=lambda step: True)
    assert run.metrics[0]["test_loss"] == pytest.approx(expected, rel=1e-12)
    assert rt.evaluate(net, (x, labels), batch=8).loss == pytest.approx(expected, rel=1e-12)


# -- tokens ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["cross_entropy", "square"])
def test_tokens_are_labels_of_their_own(given):
    """Outputs (m, T, k) with labels (m, T), of which -100 counts for nothing."""
    x, labels = noise(7, 4, 5, seed=4).double(), torch.arange(28).view(7, 4) * 5 % 3
    counted = torch.ones(7, 4, dtype=torch.bool)
    if given == "cross_entropy":
        labels = torch.where(torch.arange(28).view(7, 4) % 6 == 0, -100, labels)
        counted = labels >= 0
    net = Net()
    output = net(x).detach()
    if given == "cross_entropy":
        expected = F.cross_entropy(output[counted], labels[counted])
    else:
        expected = 0.5 * (output - F.one_hot(labels, 3)).square().sum() / 7
    found = rt.evaluate(net, [(x[:3], labels[:3]), (x[3:], labels[3:])], loss=given, top=(1, 2))
    assert found.loss == pytest.approx(expected.item(), rel=1e-12)
    assert (found.samples, found.labels) == (7, int(counted.sum()))
    order = output.argsort(-1, descending=True)
    for k in (1, 2):
        wrong = (order[..., :k] != labels[..., None]).all(-1) & counted
        assert found.wrong[k] == int(wrong.sum())
    run = fit(net, (x, labels), RECIPE.change(loss=given, batch=7, epochs=1), test=(x, labels))
    assert run.column("loss")[0] == pytest.approx(expected.item(), rel=1e-12)
    assert run.column("test_loss")[0] == pytest.approx(expected.item(), rel=1e-12)
    error = (output.argmax(-1) != labels)[counted].double().mean().item()
    assert run.column("error")[0] == run.column("test_error")[0] == pytest.approx(error, rel=1e-12)


def test_labels_of_pixels():
    """Outputs (m, k, H, W) with labels (m, H, W)."""
    net = nn.Conv2d(2, 3, 1)
    x, labels = noise(5, 2, 3, 4).double(), torch.arange(60).view(5, 3, 4) * 7 % 3
    output = net(x).detach()
    found = rt.evaluate(net, (x, labels), batch=2)
    assert found.loss == pytest.approx(F.cross_entropy(output, labels).item(), rel=1e-12)
    assert found.wrong == {1: int((output.argmax(1) != labels).sum())} and found.labels == 60


class Turned(Net):
    """Its outputs have the samples along their second axis."""

    def forward(self, x):
        return super().forward(x).T


def turned(output, labels):
    return F.cross_entropy(output.T, labels)


@pytest.mark.parametrize("ignored", [0, 3])
def test_samples_on_another_axis_than_the_first(ignored):
    net, labels = Turned(), LABELS.clone()
    labels[:ignored] = -100
    expected = F.cross_entropy(Net()(X), labels).item()
    for data in ((X, labels), [(X[part], labels[part]) for part in PARTS]):
        found = rt.evaluate(net, data, loss=turned, batch=4)
        assert found.loss == pytest.approx(expected, rel=1e-12)
        assert (found.labels, found.wrong) == (0, {})
    run, other = fit(net, (X, labels), RECIPE.change(loss=turned)), Net()
    fit(other, (X, labels), RECIPE)
    assert relative_error(run.net.first.weight, other.first.weight) < SAME


def test_a_loss_of_one_precision_is_evaluated_in_it():
    def single(output, labels):
        if output.dtype != torch.float32:
            raise RuntimeError("expected Float")
        return F.cross_entropy(output, labels)

    net, x = Net().float(), X.float()
    found = rt.evaluate(net, (x, LABELS), loss=single).loss
    assert found == pytest.approx(F.cross_entropy(net(x), LABELS).item(), rel=1e-6)


def test_a_loss_that_lacks_memory_says_so():
    def large(output, labels):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError, match="^CUDA out of memory$"):
        rt.evaluate(Net(), (X, LABELS), loss=large)


@pytest.mark.parametrize("weighted", [True, False])
def test_a_loss_is_even_where_all_samples_count_alike(weighted):
    for kind, even in {"cross_entropy": True, "classes": False, "sum": False, "new row": True,
                       "ignored": False, "function": True}.items():  # fmt: skip
        data = rt.Data.of((X, KINDS[kind][1]), sample_weight=torch.arange(22.0) + 1)
        if kind == "sum" and weighted:
            continue
        given = data if weighted else (X, KINDS[kind][1])
        samples = DeviceDataset("data", given, Net(), RECIPE.change(loss=KINDS[kind][0]))
        assert samples.is_even == (even and not weighted), kind


# -- data ------------------------------------------------------------------------------------------


class OfTwo(Net):
    def forward(self, a, b):
        return super().forward(torch.cat([a, b], 1))


class Named(Net):
    """Gives its output as models of transformers do."""

    def forward(self, x):
        return UserDict(logits=super().forward(x), hidden=x)


class Rows(Dataset):
    def __len__(self):
        return 22

    def __getitem__(self, row):
        return X[row], LABELS[row]


def batches(make):
    return [make(part) for part in PARTS]


def two(part=slice(None)):
    return {"a": X[part, :2], "b": X[part, 2:]}


FORMS = {
    "arrays": (Net, lambda: (X.numpy(), LABELS.numpy())),
    "frames": (Net, lambda: (pandas.DataFrame(X.numpy()), pandas.Series(LABELS.numpy()))),
    "lists": (Net, lambda: (X.tolist(), LABELS.tolist())),
    "data set": (Net, Rows),
    "tensor data set": (Net, lambda: TensorDataset(X, LABELS)),
    "triples": (Net, lambda: DataLoader(TensorDataset(X, LABELS, torch.arange(22)), batch_size=9)),
    "iterator": (Net, lambda: iter(batches(lambda part: (X[part], LABELS[part])))),
    "names": (Net, lambda: batches(lambda part: {"x": X[part], "y": LABELS[part]})),
    "two": (OfTwo, lambda: ((X[:, :2], X[:, 2:]), LABELS)),
    "batches of two": (OfTwo, lambda: batches(
        lambda part: ((X[part, :2], X[part, 2:]), LABELS[part]))),
    "mapping": (OfTwo, lambda: (two(), LABELS)),
    "logits by name": (Named, lambda: (X, LABELS)),
    "encodings": (OfTwo, lambda: batches(lambda part: (UserDict(two(part)), LABELS[part]))),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_data_of_any_form_train_the_same_net(form):
    make, data = FORMS[form]
    nets = make(), Net()
    run = fit(nets[0], data(), RECIPE, test=data())
    expected = fit(nets[1], (X, LABELS), RECIPE, test=(X, LABELS))
    for found, other in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert torch.equal(found, other)
    assert run.metrics == expected.metrics and run.notes == (
        ("integers behind (x, y) are left out as indices",) if form == "triples" else ()
    )
    assert rt.evaluate(nets[0], data(), batch=9).loss == pytest.approx(
        F.cross_entropy(nets[1](X), LABELS).item(), rel=1e-12
    )


@pytest.mark.parametrize("loss", ["cross_entropy", "square"])
def test_nets_of_two_inputs_and_several_orders_train_together(loss):
    nets, y = [OfTwo(), OfTwo()], LABELS if loss == "cross_entropy" else VALUES
    recipe = RECIPE.change(loss=loss)
    fit(nets, ((X[:, :2], X[:, 2:]), y), recipe, seed=[0, 1])
    for net, seed in zip(nets, (0, 1), strict=True):
        other = Net()
        fit(other, (X, y), recipe, seed=seed)
        for found, expected in zip(net.parameters(), other.parameters(), strict=True):
            assert relative_error(found, expected) < SAME


def test_a_cast_is_told():
    net = Net()
    run = fit(net, (X.float(), LABELS), RECIPE)
    assert run.notes == ("x is cast from torch.float32 to the net's torch.float64",)
    assert rt.evaluate(net, (X.float(), LABELS)).notes == run.notes
    other = Net()
    assert fit(other, (X.float().double(), LABELS), RECIPE).notes == ()
    assert torch.equal(net.first.weight, other.first.weight)


def test_a_net_that_changes_its_dtype_is_told():
    net = Net().float()
    run = fit(net, (X, LABELS), RECIPE)
    assert net.first.weight.dtype == torch.float64
    assert run.notes == ("the net is cast from torch.float32 to the recipe's torch.float64",)


class TwoDtypes(Net):
    """A float32 trunk with a float64 head."""

    def __init__(self):
        super().__init__()
        self.first.float()

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)).double())


@pytest.mark.parametrize("loss", ["cross_entropy", "square"])
def test_a_net_of_two_dtypes_keeps_them(loss):
    net, other = TwoDtypes(), TwoDtypes()
    recipe = RECIPE.change(batch=22, epochs=1, momentum=0.0, weight_decay=0.0, loss=loss)
    run = fit(net, (X, LABELS if loss == "cross_entropy" else VALUES), recipe)
    assert (net.first.weight.dtype, net.second.weight.dtype) == (torch.float32, torch.float64)
    assert run.notes == ("x is cast from torch.float64 to the net's torch.float32",)
    by, target = (F.cross_entropy, LABELS) if loss == "cross_entropy" else (half_square, VALUES)
    value = by(other(X.float()), target)
    (gradient,) = torch.autograd.grad(value, other.second.weight)
    assert relative_error(net.second.weight, other.second.weight - 0.1 * gradient) < 1e-6
    found = rt.evaluate(other, (X, target), loss=loss)
    assert found.loss == pytest.approx(value.item(), rel=1e-6)


# -- refusals, before any step ---------------------------------------------------------------------


def contrastive(output, target):
    """Samples are compared with each other."""
    return F.cross_entropy(output @ output.T, torch.arange(len(output)))


class Learnt(nn.Module):
    """A loss with a temperature that would have to be trained."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, output, target):
        return F.cross_entropy(self.scale * output, target)


class Part(Net):
    def forward(self, x):
        return super().forward(x)[:, :0]


class Choosing(Net):
    def forward(self, x):
        return super().forward(x).argmax(1)


def bad_calls():
    other, late = Net(), LABELS.clone()
    late[18] = 3  # not among the few samples on which the loss is tried
    return {
        "late label": (lambda: fit(other, (X, late), RECIPE.change(
            loss=nn.CrossEntropyLoss())), "data y: the loss .* does not take it: Target 3 is out"),
        "label for square": (lambda: fit(other, (X, late), RECIPE.change(loss="square")),
                             "class labels from 0 to 3 for 3 outputs"),
        "ignored for square": (lambda: fit(other, (X, IGNORED), RECIPE.change(loss="square")),
                               r"class labels from -100 to 2 .* needs labels in 0..2$"),
        "all ignored": (lambda: fit(other, (X, torch.full((22,), -100)), RECIPE),
                        "data y: no sample counts"),
        "shape": (lambda: fit(other, (X, VALUES[:, 0]), RECIPE.change(loss=nn.MSELoss())),
                  r"got shape \(22,\) for outputs of shape \(22, 3\)"),
        "no scalar": (lambda: fit(other, (X, LABELS), RECIPE.change(
            loss=nn.CrossEntropyLoss(reduction="none"))), r"loss: returned shape \(16,\), needs a"),
        "function": (lambda: fit(other, (X, VALUES), RECIPE.change(loss=log_cosh)),
                     "loss: log_cosh does not take the net's outputs and these targets"),
        "learnt": (lambda: RECIPE.change(loss=Learnt()), "loss: Learnt has parameters of its own"),
        "of batch": (lambda: RECIPE.change(loss=rt.Loss(huber, of="batch")), "loss: got one of"),
        "test of pairs": (lambda: fit(other, (X, LABELS), RECIPE.change(loss=contrastive), test=(
            X, LABELS)), "test: the loss contrastive compares samples"),
        "evaluation of no scalar": (
            lambda: rt.evaluate(other, (X, LABELS), loss=nn.CrossEntropyLoss(reduction="none")),
            r"loss: returned shape \(16,\), needs a scalar",
        ),
        "evaluation of a net that centres": (
            lambda: rt.evaluate(nn.Sequential(other, nn.BatchNorm1d(
                3, track_running_stats=False)), (X, LABELS), batch=11),
            "net: its samples know each other, .* so the losses of batches do not",
        ),
        "evaluation of pairs": (lambda: rt.evaluate(other, (X, LABELS), loss=contrastive, batch=11),
                                "loss: needs a mean, a weighted mean or a sum"),
        "weights in a sum": (lambda: fit(other, weighted(torch.ones(22)), RECIPE.change(
            loss=nn.CrossEntropyLoss(reduction="sum"))), "data: got weights of the samples"),
        "weights of columns": (lambda: fit(Turned(), weighted(torch.ones(22)), RECIPE.change(
            loss=turned)), "data: got weights of the samples, .* one entry a sample along their"),
        "evaluation of batches": (lambda: rt.evaluate(other, (X, LABELS), loss=rt.Loss(
            huber, of="batch")), r"loss: got one of \(net, batch\), needs one of \(output, target"),
        "evaluation of numbers": (lambda: rt.evaluate(Choosing(), (X, LABELS)),
                                  "net: gives Tensor without floating-point tensors, needs at"),
        "evaluation of nothing": (
            lambda: rt.evaluate(Part(), (X, VALUES[:, :0]), loss="square"),
            r"net: gives Tensor of shape \(16, 0\), needs at least one floating-point number$",
        ),
        "nothing": (lambda: fit(Part(), (X, VALUES[:, :0]), RECIPE.change(loss="square")),
                    r"net: gives Tensor of shape \(16, 0\), needs at least one floating"),
        "evaluation of a function": (lambda: rt.evaluate(other, (X, LABELS), loss=torch.mv),
                                     "loss: mv does not take the net's outputs and these targets"),
        "no weights": (lambda: fit(other, weighted(torch.zeros(22)), RECIPE), "no sample counts"),
        "shapes": (lambda: fit(other, [(X, LABELS), (X[:, :3], LABELS)], RECIPE),
                   "data: samples of different shapes"),
        "inputs": (lambda: fit(other, (X.long(), LABELS), RECIPE),
                   r"data x: the net does not take samples of shape \(5,\) and dtype torch.int64"),
        "crops": (lambda: fit(OfTwo(), ((X[:, :2], X[:, 2:]), LABELS), RECIPE.change(
            augmentation="crop_flip")), "data: got tuple; augmentation='crop_flip' needs images"),
        "one of test": (lambda: fit(other, (X, LABELS), RECIPE, test=(X[:, :3], LABELS)),
                        "test x: the net does not take"),
    }  # fmt: skip


@pytest.mark.parametrize("name", bad_calls())
def test_one_clear_error_before_any_training(name, monkeypatch):
    monkeypatch.setattr(device_dataset, "_CHUNK", 7)
    call, message = bad_calls()[name]
    with pytest.raises(ValueError, match=message):
        call()


def test_a_training_with_a_loss_that_compares_samples():
    """Each step is by its own batch, whose loss is all there is."""
    run, rows, net = trained((X, LABELS), recipe={"loss": contrastive})
    by_hand(net, rows, contrastive, LABELS, torch.ones(22))
    assert relative_error(run.net.first.weight, net.first.weight) < SAME


class Similar(Net):
    def forward(self, x):
        z = super().forward(x)
        return z @ z.T


def alike(output, target):
    return F.mse_loss(output, (target[:, None] == target).to(output))


def test_samples_may_be_compared_by_the_net_or_by_its_loss():
    one, other = (
        fit(net, (X, LABELS), RECIPE.change(loss=loss))
        for net, loss in ((Similar(), alike), (Net(), lambda z, y: alike(z @ z.T, y)))
    )
    for ours, theirs in zip(one.net.parameters(), other.net.parameters(), strict=True):
        assert relative_error(ours, theirs) < SAME


def test_a_loss_is_described_by_all_of_its_tensors():
    weight, more = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])
    losses = [nn.CrossEntropyLoss(weight), nn.BCEWithLogitsLoss(weight, pos_weight=weight),
              nn.BCEWithLogitsLoss(weight, pos_weight=more),
              nn.BCEWithLogitsLoss(more, pos_weight=weight)]  # fmt: skip
    said = [Recipe(loss=loss).content()["loss"] for loss in losses]
    sha256 = hashlib.sha256(weight.numpy().tobytes()).hexdigest()
    assert said[0].startswith("CrossEntropyLoss({") and said[0].endswith(f", {sha256[:8]})")
    assert len(set(said)) == 4


def test_a_loss_without_a_name_resumes_by_a_call_with_it(tmp_path):
    recipe = RECIPE.change(loss=nn.CrossEntropyLoss(CLASS_WEIGHTS))
    stopped = fit(Net(), (X, LABELS), recipe, out=tmp_path, stop=lambda step: step == 4)
    assert not stopped.finished
    with pytest.raises(ValueError, match=r"was trained with the loss CrossEntropyLoss\("):
        rt.resume(tmp_path, (X, LABELS), net=Net(), progress=False)
    other = RECIPE.change(loss=nn.CrossEntropyLoss(2 * CLASS_WEIGHTS))
    with pytest.raises(ValueError, match="another training"):
        fit(Net(), (X, LABELS), other, out=tmp_path)
    run = fit(Net(), (X, LABELS), RECIPE.change(loss=nn.CrossEntropyLoss(CLASS_WEIGHTS)),
              out=tmp_path)  # fmt: skip
    whole = fit(Net(), (X, LABELS), recipe)
    assert run.finished and torch.equal(run.net.first.weight, whole.net.first.weight)


def test_a_parameter_without_numbers_changes_nothing(tmp_path):
    net, plain = Net(), Net()
    net.nothing = nn.Parameter(torch.zeros(0, 4, dtype=torch.float64))
    run = rt.train(net, (X, LABELS), RECIPE, seed=0, out=tmp_path / "run", progress=False)
    rt.train(plain, (X, LABELS), RECIPE, seed=0, progress=False)
    assert all(torch.equal(p, net.get_parameter(n)) for n, p in plain.named_parameters())
    again = rt.training.resume(tmp_path / "run", (X, LABELS), net=net)
    assert again.first_losses.equal(run.first_losses)


@pytest.mark.parametrize("later", [False, True])
def test_a_lack_of_memory_in_a_loss_is_not_blamed_on_it(later):
    def greedy(output, target):
        if later and len(output) < 20:  # all targets are tried later
            return (output - target).square().mean()
        raise torch.OutOfMemoryError("out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        fit(nn.Linear(5, 3).double(), (X, VALUES), RECIPE.change(loss=greedy))
