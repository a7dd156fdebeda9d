"""Data: every accepted form gives the same batches; the rest is refused."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

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
    "triples": ([(X, Y, Y)], "^data: got .* floating-point numbers behind; .*sample_weight=True"),
    "fours": ([(X, Y, Y, Y)], "^data: got a batch that is tuple of 4"),
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
