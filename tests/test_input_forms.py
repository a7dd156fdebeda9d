"""Inputs of every form, in stability and equivalence: the same right numbers, read once."""

from collections import UserDict
from dataclasses import dataclass
from types import SimpleNamespace

import pandas
import pytest
import torch
from oracles import noise
from tolerances import relative_error, round_off
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import resid_theory as rt

SAME = round_off(1000)
A, B = noise(11, 2, seed=1).double(), noise(11, 3, seed=2).double()
X, Y, INDEX = torch.cat([A, B], 1), torch.arange(11) % 4, torch.arange(11)
PARTS = slice(5), slice(5, 9), slice(9, 11)


class Net(nn.Module):
    """Two layers on inputs that are one tensor."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first, self.second = nn.Linear(5, 6), nn.Linear(6, 4)
        for parameter in self.parameters():
            nn.init.normal_(parameter, generator=generator)

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


class OfTwo(Net):
    def forward(self, a, b):
        return super().forward(torch.cat([a, b], 1))


class OfMapping(Net):
    def forward(self, batch):
        return super().forward(torch.cat([batch["a"], batch["b"]], 1))


class OfObject(Net):
    def forward(self, batch):
        return super().forward(torch.cat([batch.a, batch.b], 1))


class OfNumber(Net):
    """Takes a number beside its inputs, without which it takes none."""

    def forward(self, x, factor):
        return super().forward(x * (factor - 1))


class OfOptional(Net):
    """Could be called without anything, or with one thing more than its inputs."""

    def forward(self, x=None, factor=1):
        return super().forward(x * factor)


class OfOptionalMapping(OfMapping):
    def forward(self, batch=None):
        return super().forward(batch)


class Decoder(OfTwo):
    """Makes the second half of its inputs from labels if it gets any."""

    def __init__(self):
        super().__init__()
        self.config = SimpleNamespace(is_encoder_decoder=True)

    def forward(self, a, decoder_inputs, labels=None):
        return super().forward(a, decoder_inputs if labels is None else 0 * decoder_inputs)


class Encoding(UserDict):
    """Like a BatchEncoding of transformers: a mapping with attributes and more entries."""

    def __getattr__(self, key):
        try:
            return self.data[key]
        except KeyError as error:
            raise AttributeError(key) from error


@dataclass
class Pieces:
    a: Tensor
    b: Tensor
    label: Tensor


class Rows(Dataset):
    """A data set of torch, sample by sample."""

    def __len__(self):
        return len(X)

    def __getitem__(self, row):
        return X[row], Y[row]


def parts(*tensors):
    return [tuple(tensor[part] for tensor in tensors) for part in PARTS]


def named(part=slice(None)):
    return {"a": A[part], "b": B[part]}


ONE_TENSOR = {
    "tensor": lambda: X,
    "array": lambda: X.numpy(),
    "frame": lambda: pandas.DataFrame(X.numpy()),
    "numbers": lambda: X.tolist(),
    "pair": lambda: (X, Y),
    "labels in words": lambda: (X, ["word"] * 11),
    "labels in words in a list": lambda: [X, ["word"] * 11],
    "triple": lambda: (X, Y, INDEX),
    "object": lambda: SimpleNamespace(x=X),
    "x and y": lambda: {"x": X, "y": Y},
    "data set": Rows,
    "tensor data set": lambda: TensorDataset(X, Y),
    "list of tensors": lambda: [X[part] for part in PARTS],
    "list of pairs": lambda: parts(X, Y),
    "list of singles": lambda: parts(X),
    "iterator": lambda: iter(parts(X, Y)),
    "generator": lambda: (X[part] for part in PARTS),
    "loader": lambda: DataLoader(X, batch_size=4),
    "loader of triples": lambda: DataLoader(TensorDataset(X, Y, INDEX), batch_size=4),
    "loader of arrays": lambda: [x.numpy() for (x,) in parts(X)],
}
FORMS = {name: (Net, data) for name, data in ONE_TENSOR.items()} | {
    "two": (OfTwo, lambda: (A, B)),
    "two and labels": (OfTwo, lambda: (A, B, Y)),
    "pair of two": (OfTwo, lambda: ((A, B), Y)),
    "batches of two": (OfTwo, lambda: parts(A, B)),
    "batches of two and more": (OfTwo, lambda: parts(A, B, Y)),
    "batches of pairs of two": (OfTwo, lambda: [((a, b), y) for a, b, y in parts(A, B, Y)]),
    "by name": (OfTwo, named),
    "batches by name": (OfTwo, lambda: [named(part) for part in PARTS]),
    "more names": (OfTwo, lambda: [named(part) | {"label": Y[part]} for part in PARTS]),
    "pairs by name": (OfTwo, lambda: [(named(part), Y[part]) for part in PARTS]),
    "encodings": (OfTwo, lambda: [Encoding(named(part)) for part in PARTS]),
    "labelled": (OfTwo, lambda: named() | {"labels": Y}),
    "labelled batches": (OfTwo, lambda: [named(part) | {"labels": Y[part]} for part in PARTS]),
    "mapping": (OfMapping, named),
    "labelled mapping": (OfMapping, lambda: named() | {"labels": Y}),
    "mappings": (OfMapping, lambda: [named(part) | {"label": Y[part]} for part in PARTS]),
    "encodings as one": (OfMapping, lambda: [Encoding(named(part)) for part in PARTS]),
    "encodings with attributes": (OfObject, lambda: [Encoding(named(part)) for part in PARTS]),
    "objects": (OfObject, lambda: [Pieces(*part) for part in parts(A, B, Y)]),
    "one object": (OfObject, lambda: Pieces(A, B, Y)),
    "arrays by name": (OfTwo, lambda: {name: side.numpy() for name, side in named().items()}),
    "pairs of arrays by name": (
        OfTwo,
        lambda: [
            ({name: side.numpy() for name, side in named(part).items()}, Y[part].numpy())
            for part in PARTS
        ],
    ),
    "x and more by name": (
        OfNumber,
        lambda: {"x": X, "factor": torch.full((11, 1), 2.0, dtype=X.dtype)},
    ),
    "a number": (OfNumber, lambda: (X.numpy(), 2.0)),
    "an optional argument": (OfOptional, lambda: (X, Y)),
    "batches for an optional argument": (OfOptional, lambda: parts(X, Y)),
    "mapping for an optional argument": (OfOptionalMapping, named),
    "inputs of a decoder": (Decoder, lambda: {"a": A, "decoder_inputs": B, "labels": Y}),
}


LEFT_OUT = "of x, 'label' is left out, which the net does not take"
NOTES = {
    "more names": (LEFT_OUT,),
    "labels in words in a list": ("a list of two tensors is taken for inputs and targets",),
}


@pytest.mark.parametrize("form", FORMS)
def test_layer_cushions_take_it(form):
    make, data = FORMS[form]
    net = make()
    found = rt.layer_cushions(net, data(), batch=4, weight="effective")
    expected = []
    for layer, z in ((net.first, X), (net.second, torch.tanh(net.first(X)))):
        w = layer.weight.detach()
        expected.append((z.detach() @ w.T).norm(dim=1) / w.norm() / z.detach().norm(dim=1))
    assert found.layers == ("first", "second")
    assert relative_error(found.values, torch.stack(expected)) < SAME
    assert found.notes == NOTES.get(form, ())


@pytest.mark.parametrize("form", FORMS)
def test_interlayer_cushions_take_it(form):
    make, data = FORMS[form]
    net = make()
    found = rt.interlayer_cushions(net, data(), start="first", kappa="none", batch=4)
    expected = []
    for x in X:
        slopes = 1 - torch.tanh(net.first(x)) ** 2
        jacobian = net.second.weight * slopes @ net.first.weight
        expected.append((jacobian @ x).norm() / jacobian.norm() / x.norm())
    assert relative_error(found.values[0], torch.stack(expected).detach()) < SAME


@pytest.mark.parametrize("form", FORMS)
def test_check_equivalence_takes_it(form):
    make, data = FORMS[form]
    one, other = make(), make()
    with torch.no_grad():
        other.second.bias += noise(4, seed=3)
    if form.startswith("labels in words"):
        with pytest.raises(ValueError, match="^data y: got list, needs a tensor"):
            rt.check_equivalence(one, other, data())
        return
    gap = rt.check_equivalence(one, other, data(), loss=lambda output, _: output.sum() ** 3)
    expected = noise(4, seed=3).abs().max() / Net()(X).detach().abs().max()
    assert gap.outputs == pytest.approx(expected.item(), rel=1e-12)


def test_gradients_of_batches_are_those_of_all_samples():
    """With half the squared norm as loss, whose gradient at the output is the output."""
    one, other, third = Net(), Net(), noise(4, seed=3)
    with torch.no_grad():
        other.second.bias += third
    gaps = [rt.check_equivalence(one, other, data) for data in (X, [x for (x,) in parts(X)])]
    found = []
    for net in (one, other):
        value = 0.5 * net(X).square().sum() / len(X)
        found.append(torch.autograd.grad(value, list(net.parameters())))
    expected = max(relative_error(b, a) for a, b in zip(*found, strict=True))
    for gap in gaps:
        assert gap.gradients == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("kind", ["mapping", "tuple", "object"])
def test_all_tensors_of_an_output_are_compared(kind):
    class Several(Net):
        def forward(self, x):
            h = self.first(x)
            out = self.second(torch.tanh(h))
            some = {"mapping": {"a": h, "b": out}, "tuple": (h, [out]), "object": Pieces(h, out, 0)}
            return some[kind]

    one, other = Several(), Several()
    assert rt.check_equivalence(one, other, parts(X)).largest == 0
    with torch.no_grad():
        other.second.bias[1] += 0.5
    gap = rt.check_equivalence(one, other, parts(X))
    scale = Net()(X).detach().abs().max()  # of the tensor that differs
    assert gap.outputs == pytest.approx(0.5 / scale.item(), rel=1e-12)
    found = []
    for net in (one, other):
        value = 0.5 * (net.first(X).square().sum() + Net.forward(net, X).square().sum()) / len(X)
        found.append(torch.autograd.grad(value, list(net.parameters())))
    a, b = found
    expected = max(relative_error(second, first) for first, second in zip(a, b, strict=True))
    assert gap.gradients == pytest.approx(expected, rel=1e-12)


# -- dtypes ----------------------------------------------------------------------------------------


class TwoDtypes(Net):
    """A float32 trunk with a float64 head."""

    def __init__(self):
        super().__init__()
        self.first.float()

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)).double())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_inputs_go_to_the_dtype_of_the_first_layer_and_reports_say_so(dtype):
    net = TwoDtypes()
    found = rt.layer_cushions(net, [x.to(dtype) for (x,) in parts(X)], weight="effective")
    z = torch.tanh(net.first(X.float())).double().detach()
    w = net.second.weight.detach()
    expected = (z @ w.T).norm(dim=1) / w.norm() / z.norm(dim=1)
    assert relative_error(found.values[1], expected) < 1e-6
    cast = ("x is cast from torch.float64 to the net's torch.float32",)
    assert found.notes == (cast if dtype == torch.float64 else ())
    assert (f"Note: {cast[0]}." in str(found)) == (dtype == torch.float64)


@pytest.mark.parametrize("of", [torch.float32, torch.float64], ids=str)
def test_a_cast_changes_nothing_but_the_precision(of):
    net = Net().to(of)
    measure = {
        "cushions": lambda x: rt.layer_cushions(net, x),
        "interlayer": lambda x: rt.interlayer_cushions(net, x, start="first"),
        "noise": lambda x: rt.stability.weight_noise(net, x, draws=1),
        "gap": lambda x: rt.check_equivalence(net, net, x),
    }
    given = X.to(torch.float64 if of == torch.float32 else torch.float32)
    for name, function in measure.items():
        note = f"x is cast from {given.dtype} to the net's {of}"
        cast, plain = function(given), function(given.to(of))
        assert cast.notes == (note,) and plain.notes == (), name
        if name in ("cushions", "interlayer"):
            assert torch.equal(cast.values, plain.values)


# -- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("net", "data", "message"),
    [
        (Net, lambda: [], "data: got no batch"),
        (Net, lambda: X[:0], "data: got a batch without samples"),
        (Net, lambda: [X[:3], X[:3], X[:0]], "data: got a batch without samples"),
        (Net, lambda: [X[:3], X[3:]], "data: x has 3 samples and y shape .8, 5."),
        (Net, lambda: "digits", "data: got str, needs"),
        (Net, lambda: ["a", "b"], "data x: got list, needs a tensor or an array"),
        (Net, lambda: torch.tensor(3.0), "data: got a batch that is Tensor without a tensor whose"),
        (
            Net,
            lambda: A,
            r"data x: the net does not take samples of shape \(2,\) and dtype torch.float64",
        ),
        (OfTwo, lambda: X, "data x: the net does not take samples of shape .*missing 1 required"),
        (
            OfTwo,
            lambda: {"a": A},
            "data x: the net does not take a mapping with 'a', samples .*missing 1 required",
        ),
        (OfTwo, lambda: {"a": A, "b": B * torch.nan}, r"data x: entry \(0, 0\) is nan"),
    ],
    ids=range(11),
)
def test_refusals(net, data, message):
    for measure in (
        lambda: rt.layer_cushions(net(), data()),
        lambda: rt.interlayer_cushions(net(), data(), start="first"),
        lambda: rt.stability.weight_noise(net(), data()),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            measure()


# -- passes ----------------------------------------------------------------------------------------


class Counted:
    """A loader that counts how many batches were taken from it."""

    def __init__(self, batches):
        self.batches, self.taken = batches, 0

    def __iter__(self):
        for batch in self.batches:
            self.taken += 1
            yield batch


def chain():
    return nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 4))


PASSES = {
    "layer_cushions": lambda data, **more: rt.layer_cushions(chain(), data, **more),
    "interlayer_cushions": lambda data, **more: rt.interlayer_cushions(
        chain(), data, start=0, **more),
    "block_cushions": lambda data, **more: rt.stability.block_cushions(
        chain(), data, blocks=["0", "2"], **more),
    "activation_noise": lambda data, **more: rt.stability.activation_noise(
        chain(), data, draws=1, **more),
    "weight_noise": lambda data, **more: rt.stability.weight_noise(chain(), data, draws=1, **more),
    "contraction": lambda data: rt.stability.activation_contraction(chain(), data),
    "smoothness": lambda data: rt.stability.interlayer_smoothness(chain(), data, draws=1),
    "bound": lambda data, **more: rt.stability.compression_bound(
        chain(), data, margin=1.0, **more),
    "equivalence": lambda data: rt.check_equivalence(
        chain(), chain(), data, steps=7, optimizer=lambda p: torch.optim.SGD(p, lr=0.1)),
}  # fmt: skip
BARS = {
    "layer_cushions": "cushions", "interlayer_cushions": "interlayer cushions", "bound": "bound",
    "block_cushions": "interlayer cushions", "activation_noise": "noise",
    "weight_noise": "weight noise",
}  # fmt: skip


@pytest.mark.parametrize("function", BARS)
def test_bars_are_shown_where_they_are_asked_for(function, capsys):
    data = [x for (x,) in parts(X)]
    PASSES[function](data)
    assert capsys.readouterr() == ("", "")
    PASSES[function](data, progress=True)
    shown = capsys.readouterr().err
    assert shown.startswith(f"\r{BARS[function]}:") and "3/3" in shown


@pytest.mark.parametrize("function", BARS)
def test_results_say_what_was_done_to_the_data(function):
    cast = "x is cast from torch.float32 to the net's torch.float64"
    assert PASSES[function](X.float()).notes == (cast,)


@pytest.mark.parametrize("function", PASSES)
def test_data_are_read_once(function):
    data = Counted([x for (x,) in parts(X)])
    PASSES[function](data)
    assert data.taken == len(PARTS)
