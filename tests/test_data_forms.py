"""Data: every accepted form gives the same batches; the rest is refused."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from oracles import hessian_by_nested_gradients
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import resid_theory as rt
from resid_theory.data import Data
from resid_theory.data.regression import Regression

X = torch.arange(10.0, dtype=torch.float64).view(5, 2)
Y = -X[:, :1]
PARTS = slice(3), slice(3, None)


def pairs(data):
    return (batch.pair for batch in Data.of(data))


ACCEPTED = {
    "tuple": ((X, Y), [5]),
    "list": ([X, Y], [5]),
    "arrays": ((X.numpy(), Y.numpy()), [5]),
    "nested-lists": ((X.tolist(), Y.tolist()), [5]),  # NumPy reads them as float64
    "object": (SimpleNamespace(x=X, y=Y), [5]),
    "regression": (Regression(X, Y), [5]),
    "one-batch": ([(X, Y)], [5]),
    "two-batches": ([(X[:3], Y[:3]), (X[3:], Y[3:])], [3, 2]),
    "two-batches-tuple": (((X[:3], Y[:3]), (X[3:], Y[3:])), [3, 2]),
    "arrays-in-lists": ([[t[part].numpy() for t in (X, Y)] for part in PARTS], [3, 2]),
    "loader": (DataLoader(TensorDataset(X, Y), batch_size=3), [3, 2]),
}


@pytest.mark.parametrize("kind", ACCEPTED)
def test_batches_are_the_samples(kind):
    data, sizes = ACCEPTED[kind]
    parts = list(pairs(data))
    assert [len(x) for x, _ in parts] == sizes
    assert torch.equal(torch.cat([x for x, _ in parts]), X)
    assert torch.equal(torch.cat([y for _, y in parts]), Y)


def test_two_samples_in_nested_lists_are_not_two_pairs():
    ((x, _),) = pairs((X[:2].tolist(), X[2:4].tolist()))
    assert torch.equal(x, X[:2])


def test_dtypes_are_kept():
    ((x, y),) = pairs((X.to(torch.float32), torch.arange(5, dtype=torch.int16)))
    assert (x.dtype, y.dtype) == (torch.float32, torch.int16)


def test_nothing_is_read_ahead():
    read = []

    def source():
        for k in range(3):
            read.append(k)
            yield X, Y

    stream = pairs(source())
    next(stream)
    assert read == [0]


def test_an_exhausted_iterator_is_explained():
    once = iter([(X, Y)])
    assert len(list(pairs(once))) == 1
    with pytest.raises(ValueError, match="^data: got no batch.*exhausted iterator"):
        list(pairs(once))


REFUSED = {
    "number": (3, "^data: got int, needs"),
    "none": (None, "^data: got NoneType, needs"),
    "dataset": (SimpleNamespace(x=X), "^data: got SimpleNamespace, needs"),
    "empty-loader": ([], "^data: got no batch"),
    "name": ("digits", "^data: got str, needs"),
    "tensor": (X, "^data: got a batch that is Tensor of 2"),
    "one-array": ([X], "^data: got a batch that is Tensor of 5"),
    "three-arrays": ([X, Y, X], "^data: got a batch that is Tensor of 5"),
    "triples": ([(X, Y, Y)], "^data: got .* floating-point numbers behind; .*sample_weight=True"),
    "fours": ([(X, Y, Y, Y)], "^data: got a batch that is tuple of 4"),
    "one-tensor-data-set": (TensorDataset(X), "^data: got a batch that is list of 1, needs a pair"),
    "names": (
        [{"image": X, "label": Y}],
        "^data: .* dict of 2 with 'image', 'label', .*of=\"batch\"",
    ),
    "one-mapping": (
        {"image": X, "label": Y},
        "^data: got a mapping with 'image', 'label', needs the entries 'x' and 'y'",
    ),
    "one-sample": ((X[0], Y[0, 0]), r"is \(x\[None\], y\[None\]\), a list of them is for a DataL"),
    "samples": ([(X[0], Y[0, 0]), (X[1], Y[1, 0])], "a list of them is for a DataLoader$"),
    "late-nan": ([(X, Y), (X * torch.nan, Y)], r"^data x: entry \(0, 0\) is nan"),
    "no-samples": ((X[:0], Y[:0]), "^data: got a batch without samples"),
    "counts": ((X, Y[:4]), r"^data: x has shape \(5, 2\) and y \(4, 1\)"),
    "masked": ((X, np.array([None] * 5)), "^data y: got ndarray, needs"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_refused(kind):
    data, message = REFUSED[kind]
    with pytest.raises(ValueError, match=message):
        list(pairs(data))


OF_BATCH = rt.Loss(lambda net, batch: net(batch[0]).square().mean(), of="batch")


@pytest.mark.parametrize(("data", "kind"), [((X, Y), "a bare pair"), (X, "one Tensor")])
def test_batches_for_a_loss_of_net_and_batch_are_a_list(data, kind):
    with pytest.raises(ValueError, match=rf"^data: got {kind}, needs a list .*: pass \[batch\]$"):
        rt.hessian(nn.Linear(2, 1), OF_BATCH, data)


def test_a_batch_for_a_loss_of_net_and_batch_is_one_piece():
    (batch,) = Data.of([(X, Y)], pairs=False)
    assert batch.part(0, 5) is batch
    for start, count in ((0, 4), (1, 5)):
        with pytest.raises(ValueError, match="^data: a batch for a loss of .* cannot be split"):
            batch.part(start, count)


def test_bytes_are_images_with_three_axes_a_sample_only():
    pixels = torch.arange(5 * 12, dtype=torch.uint8)
    ((x, _),) = pairs((pixels.view(5, 12), Y))
    assert torch.equal(x, pixels.view(5, 12))
    ((x, _),) = pairs((pixels.view(5, 1, 3, 4), torch.arange(5)))
    torch.testing.assert_close(x, pixels.view(5, 1, 3, 4) / 255)
    with pytest.raises(ValueError, match=r"^data: x has shape \(5, 1, 3, 4\) and y \(4,\)"):
        list(pairs((pixels.view(5, 1, 3, 4), torch.arange(4))))


def test_bytes_keep_the_weights_behind_them():
    pixels = torch.arange(5 * 12, dtype=torch.uint8).view(5, 1, 3, 4)
    (batch,) = Data.of((pixels, torch.arange(5), Y[:, 0].abs()), sample_weight=True)
    assert batch.sample_weight.tolist() == Y[:, 0].abs().tolist()


class Turned(nn.Linear):
    """Its outputs have the samples along their second axis."""

    def forward(self, x):
        return super().forward(x).T


def test_one_sample_has_a_weight(generator):
    x, y = torch.randn(1, 2, generator=generator), torch.tensor([1])
    net = Turned(2, 3)

    def loss(output, target):
        return F.cross_entropy(output.T, target)

    data = Data.of((x, y), sample_weight=[0.5])
    found = rt.evaluate(net, data, loss=loss).loss
    assert found == pytest.approx(loss(net(x), y).item(), rel=1e-12)
    torch.testing.assert_close(rt.hessian(net, loss, data), rt.hessian(net, loss, (x, y)))


class Creeping:
    """Every pass has one number more by its last bit."""

    def __init__(self):
        self.x = X.clone()

    def __iter__(self):
        self.x[3, 0] = torch.nextafter(self.x[3, 0], self.x[3, 0] + 1)
        yield self.x.clone(), Y


def test_a_last_bit_that_changes_from_pass_to_pass_is_noticed():
    data = Data.of(Creeping())
    list(data)
    with pytest.raises(ValueError, match="^data: Creeping gives other samples in every pass"):
        list(data)


class Scaled(nn.Module):
    """The mean over tokens of a linear map, times a number that all samples share."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 3)

    def forward(self, x, factor):
        return factor * self.layer(x).mean(1)


@pytest.mark.parametrize("sizes", [(1,), (2,), (5,), (1, 2), (1, 1)], ids=str)
@pytest.mark.parametrize("lengths", [(3, 3), (3, 4)], ids=str)
def test_few_samples_beside_a_number_and_batches_of_other_lengths(generator, sizes, lengths):
    net, factor = Scaled(), torch.tensor(3.0)
    data = []
    for size, length in zip(sizes, lengths, strict=False):
        x = torch.randn(size, length, 2, generator=generator)
        data.append(({"x": x, "factor": factor}, torch.arange(size) % 3))
    losses = [F.cross_entropy(net(**x), y, reduction="sum") for x, y in data]
    expected = torch.stack(losses).sum() / sum(sizes)
    for given in (data, data[0] if len(sizes) == 1 else data):
        assert rt.evaluate(net, given).loss == pytest.approx(expected.item(), rel=1e-12)
        operator = rt.curvature_operator(net, "cross_entropy", given)
        exact = hessian_by_nested_gradients(expected, list(net.parameters()))
        torch.testing.assert_close(operator.dense(), exact)


@pytest.mark.parametrize(
    ("data", "sizes"), [((X, Y), [2, 2, 1]), ([(X, Y), (X[:3], Y[:3])], [5, 3])]
)
def test_batches_that_are_given_stay_as_they_are(data, sizes):
    held = Data.of(data).held() if isinstance(data, list) else Data.of(data)
    for some in (Data.of(data), held):
        parts = list(some.chunks(2))
        assert [part.size for part in parts] == sizes
        assert torch.equal(torch.cat([part.pair[0] for part in parts])[:5], X)


def test_a_bar_counts_the_batches_of_a_loader(capsys):
    loader = DataLoader(TensorDataset(X, Y), batch_size=2)
    for data in (loader, (X, Y)):
        rt.layer_cushions(nn.Linear(2, 1), data, batch=2, progress=True)
        assert "3/3" in capsys.readouterr().err
    rt.layer_cushions(nn.Linear(2, 1), (pair for pair in loader), progress=True)
    assert "3it" in capsys.readouterr().err


class Gram(nn.Linear):
    def forward(self, x):
        return super().forward(x) @ super().forward(x).T


def test_outputs_with_samples_on_two_axes_take_one_batch():
    net = Gram(2, 2)
    with pytest.raises(ValueError, match="^net: no axis of its outputs grows with the samples al"):
        rt.evaluate(net, [(X, X @ X.T)] * 2, loss="square")
    expected = 0.5 * (net(X) - X @ X.T).square().sum().item() / 5
    assert rt.evaluate(net, (X, X @ X.T), loss="square").loss == pytest.approx(expected, rel=1e-12)


class Failing(nn.Linear):
    def forward(self, x):
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_a_lack_of_memory_is_no_fault_of_the_inputs():
    with pytest.raises(torch.OutOfMemoryError, match="^CUDA out of memory$"):
        rt.layer_cushions(Failing(2, 1), X)


def test_images_are_data_of_their_own():
    images = rt.Images(pixels=X, labels=Y[:, 0].long())
    with pytest.raises(ValueError, match="got Images, .*; pass them as data"):
        rt.evaluate(nn.Linear(2, 3), (images, Y))
    assert torch.equal(images.inputs(X, torch.float64), X)  # not normalized
    assert images.inputs(X, torch.float32).dtype == torch.float32


class Builtin(nn.Module):
    """Its forward shows no signature."""

    forward = staticmethod(torch.tanh)


def test_a_net_without_a_signature_is_called():
    found = rt.evaluate(Builtin(), (X, X), loss="square").loss
    assert found == pytest.approx(0.5 * (X.tanh() - X).square().sum().item() / 5, rel=1e-12)
