"""Data: every accepted form gives the same batches; the rest is refused."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from oracles import hessian_by_nested_gradients
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.data import DataLoader, Dataset, TensorDataset

import resid_theory as rt
from resid_theory.data import Batch, Data
from resid_theory.data.pass_record import PassRecord
from resid_theory.data.regression import Regression
from resid_theory.data.sample_look import coupling, examples
from resid_theory.losses import SampleAxes
from resid_theory.nested import tensors_of

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
    "rows": (([*X.numpy()], Y), [5]),
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
    "one-label": ((X.byte().view(5, 1, 2, 1), Y[0, 0]), r"^data: x has shape \(5, 1, 2, 1\) and y"),
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


def numbers(batch):
    """The first entries of its samples, which say which they are."""
    return (batch.inputs[:, 0] / 2).long().tolist()


@pytest.mark.parametrize("kind", ["pair", "images"])
def test_some_of_the_samples_of_a_batch(kind):
    """Their inputs, targets, weights, numbers and sizes belong together."""
    x, weights = torch.arange(14.0).view(7, 2), torch.arange(7.0)
    content = (x, -x[:, :1]) if kind == "pair" else rt.Images(pixels=x, labels=-x[:, :1])
    batch = rt.data.Batch(content=content, size=7, first=20, sample_weight=weights)
    some = {
        "the second part": (batch.part(3, 3), [3, 4, 5], 23),
        "the last part": (batch.part(6, 3), [6], 26),
        "all": (batch.part(0, 7), [*range(7)], 20),
        "spread": (batch.spread(3), [0, 2, 4], 20),
        "spread over all": (batch.spread(7), [*range(7)], 20),
        "ends": (batch.ends(), [6, 0], 20),
        "one end": (batch.part(2, 1).ends(), [2], 22),
        "cycled": (batch.cycled(9), [*range(7), 0, 1], 20),
        "fewer": (batch.cycled(2), [0, 1], 20),
        "every other": (batch.rows(slice(1, 6, 2)), [1, 3, 5], 20),
    }
    for name, (found, expected, first) in some.items():
        assert numbers(found) == expected and found.size == len(expected), name
        assert (-found.target[:, 0] / 2).tolist() == found.sample_weight.tolist() == expected, name
        assert found.first == first, name
    assert batch.part(0, 7) is batch.spread(7) is batch.spread(9) is batch


def test_batches_are_joined_as_long_as_their_samples_are_alike():
    factor = torch.tensor(3.0)
    contents = [({"x": X[part], "factor": factor}, Y[part]) for part in PARTS]
    one, two = (
        rt.data.Batch(content=(x, y), size=len(y), sample_weight=y[:, 0]) for x, y in contents
    )
    both = one.joined(two)
    assert both.size == 5 and both.sample_weight is None and torch.equal(both.target, Y)
    assert torch.equal(both.inputs["x"], X) and both.inputs["factor"] == 3
    other = rt.data.Batch(content=({"x": X[:, :1], "factor": factor}, Y), size=5)
    assert one.joined(other) is None
    weighed = [((X[part], Y[part]), Y[part, 0].abs()) for part in PARTS]
    whole = Data.of([(*pair, w) for pair, w in weighed], sample_weight=True).whole()
    assert whole.sample_weight.tolist() == Y[:, 0].abs().tolist() and whole.size == 5
    with pytest.raises(ValueError) as caught:
        Data.of([(X, Y), (X[:, :1], Y)]).whole()
    assert str(caught.value) == (
        "data: samples of different shapes in x and y: some of (1,) and (1,), others of (2,) and "
        "(1,); needs one shape"
    )


def numbered(rows, width=2):
    x = torch.tensor(rows, dtype=torch.float64)[:, None] * torch.tensor([2.0, 1])[:width]
    return rt.data.Batch(content=(x, -x[:, :1]), size=len(rows))


@pytest.mark.parametrize(("batches", "few", "more"), [
    ([numbered([7])], [7], [7, 7]),
    ([numbered([7, 8])], [7, 7], [7, 8, 7]),
    ([numbered([5, 6, 7, 8, 9])], [8, 5], [5, 6, 8]),
    ([numbered([7]), numbered([1, 2, 3, 4])], [3, 7], [7, 1, 2, 3]),
    ([numbered([7]), numbered([8])], [7, 7], [7, 8, 7]),
    ([numbered([7]), numbered([8, 9], width=1)], [7], [7, 7]),
    ([numbered([7, 8, 9]), numbered([1])], [9, 7], [7, 8, 9]),
], ids=range(7))  # fmt: skip
def test_examples_have_other_samples_before_and_behind(batches, few, more):
    """Three at most of a batch; its own first one again where there are no others."""
    found = examples(batches, 3)
    assert [numbers(one) for one in found] == [few, more]


@pytest.mark.parametrize("moved", [0, 1], ids=["last", "first"])
@pytest.mark.parametrize(("share", "coupled"), [(0.9, False), (1.1, True)])
def test_outputs_that_move_by_more_than_round_off_are_coupled(moved, share, coupled):
    """The last of a few is the first of more, the first the last; 2e-6 is let through."""
    more = torch.tensor([[1.0], [5.0], [1.0]])
    few = more[[2, 0]].clone()
    few[moved] *= 1 + share * 2e-6
    axes = SampleAxes(((0, 1),) * 2, (False,) * 2)
    found = coupling(axes, (few, more[[2, 0]]), (more, more))
    assert found.startswith("net: its samples know each other") == coupled == bool(found)
    assert coupling(None, few, more) == "net: no axis of its outputs grows with the samples alone"


DTYPES = [torch.uint8, torch.int16, torch.int32, torch.int64, torch.bfloat16, torch.float16,
          torch.float32, torch.float64]  # fmt: skip
CHANGES = {
    "an entry": lambda x, y: (torch.cat([x[:3], x[3:4] + 1, x[4:]]), y),
    "a target": lambda x, y: (x, torch.cat([y[:1], y[1:2] + 1, y[2:]])),
    "entries of a sample": lambda x, y: (x.flip(1), y),
    "inputs and targets": lambda x, y: (y, x),
    "targets of others": lambda x, y: (x, y.flip(0)),
    "one sample more": lambda x, y: (torch.cat([x, x[:1]]), torch.cat([y, y[:1]])),
    "one sample twice": lambda x, y: (x[[0, 1, 2, 3, 3]], y[[0, 1, 2, 3, 3]]),
}


class Passes:
    """Gives other batches in each pass."""

    def __init__(self, *passes):
        self.passes = iter(passes)

    def __iter__(self):
        return iter(next(self.passes))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("change", CHANGES)
def test_what_another_pass_gives_otherwise_is_noticed(change, dtype):
    x = torch.tensor([[1, 4], [2, 9], [7, 3], [8, 5], [6, 0]]).to(dtype)
    x = x.requires_grad_() if x.is_floating_point() else x
    pair = x, x.detach() * 2 + 1
    data = Data.of(Passes([pair], [CHANGES[change](*pair)]))
    list(data)
    with pytest.raises(ValueError, match="^data: Passes gives other samples in every pass"):
        list(data)


@pytest.mark.parametrize("ordered", [False, True])
def test_samples_in_another_order_are_told_from_others(ordered):
    """Once by a warning, or refused where the order matters; other batches are another order."""
    shuffled = torch.tensor([3, 0, 4, 1, 2])
    parts = [(X[:2], Y[:2]), (X[2:], Y[2:])]
    data = Data.of(Passes([(X, Y)], [(X[shuffled], Y[shuffled])], parts, [(X, Y)]))
    data.ordered = ordered
    list(data)
    assert not data.shuffled
    if ordered:
        with pytest.raises(ValueError, match="^data: Passes shuffles between passes, and here the"):
            list(data)
        return
    with pytest.warns(
        UserWarning, match="^data: Passes shuffles between passes; a mean over sa"
    ) as caught:
        list(data)
    assert data.shuffled and caught[0].filename == __file__
    assert [batch.first for batch in data] == [0, 2]  # any other warning is an error
    assert [batch.first for batch in data] == [0]


PIXELS = torch.arange(5 * 12, dtype=torch.uint8).view(5, 1, 3, 4)
NOTES = {
    "bytes": ((PIXELS, torch.arange(5)), {},
              ["x is of bytes, taken for pixels of images, which are divided by 255"]),
    "images": (rt.Images(pixels=PIXELS, labels=torch.arange(5)), {}, []),
    "list": ([X, Y], {"targets": False}, ["a list of two tensors is taken for inputs and targets"]),
    "tuple": ((X, Y), {"targets": False}, []),
    "indices": ([(X, Y, torch.arange(5))] * 2, {},
                ["integers behind (x, y) are left out as indices"]),
    "weights": ([(X, Y, torch.arange(5))] * 2, {"sample_weight": True}, []),
    "casts": ([(X, Y)] * 2, {"like": nn.Linear(2, 1).float()},
              ["x is cast from torch.float64 to the net's torch.float32",
               "y is cast from torch.float64 to the net's torch.float32"]),
    "classes": ((X, torch.arange(5)), {"like": nn.Linear(2, 1).double()}, []),
    "inputs": (X, {"like": nn.Linear(2, 1).float(), "targets": False},
               ["x is cast from torch.float64 to the net's torch.float32"]),
    "names": ({"input": X, "label": Y, "id": Y},
              {"like": nn.Linear(2, 1).double(), "targets": False},
              ["of x, 'label', 'id' is left out, which the net does not take"]),
}  # fmt: skip


@pytest.mark.parametrize("kind", NOTES)
def test_what_was_done_to_data_is_noted_once(kind):
    given, options, expected = NOTES[kind]
    data = Data.of(given, **options)
    batches = 2 if kind in ("indices", "weights", "casts") else 1
    assert [len(list(data)) for _ in "ab"] == [batches] * 2
    assert data.notes == expected


class Numbered(Dataset):
    """Three hundred samples of one number."""

    def __len__(self):
        return 300

    def __getitem__(self, row):
        return torch.full((1,), float(row)), row


def test_samples_of_a_data_set_are_read_256_at_a_time():
    batches = list(Data.of(Numbered()))
    assert [(batch.first, batch.size) for batch in batches] == [(0, 256), (256, 44)]
    assert torch.cat([batch.target for batch in batches]).tolist() == list(range(300))


class Widest(TorchFunctionMode):
    """Rows of the longest float64 tensor of some width that torch's functions give."""

    def __init__(self, width):
        super().__init__()
        self.width, self.rows = width, 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        for one in tensors_of(found):
            if one.dtype == torch.float64 and one.dim() == 2 and one.shape[1] == self.width:
                self.rows = max(self.rows, len(one))
        return found


@pytest.mark.parametrize(("rows", "width", "compute"), [
    (1 << 16, 2, lambda x: rt.Moments.of((x[:, :1], x[:, :1]))),
    (1 << 13, 3, lambda x: rt.data.whiten(x, 1)),
], ids=["moments", "whitening"])  # fmt: skip
def test_samples_are_cast_to_float64_in_parts(rows, width, compute, generator):
    x = torch.randn(2 * rows + 1, width, generator=generator, dtype=torch.float32)
    with Widest(width) as widest:
        compute(x)
    assert widest.rows == rows


def test_arrays_by_name_stand_beside_numbers():
    parts = [({"a": X[part].numpy(), "b": 3.0}, Y[part].numpy()) for part in PARTS]
    for given, rows in ((parts, PARTS), (({"a": X.numpy(), "b": 3.0}, Y), [slice(None)])):
        for batch, part in zip(Data.of(given), rows, strict=True):
            assert torch.equal(batch.inputs["a"], X[part]) and batch.inputs["b"] == 3.0
            assert torch.equal(batch.target, Y[part])


def test_targets_of_a_net_of_two_dtypes_keep_theirs():
    net = nn.Sequential(nn.Linear(2, 3).float(), nn.Linear(3, 1).double())
    (batch,) = Data.of((X, Y), like=net)
    assert [side.dtype for side in batch.pair] == [torch.float32, torch.float64]


def test_inputs_by_name_need_no_net():
    for given in ({"a": X, "b": Y}, {"a": X, "labels": Y}):
        (batch,) = Data.of(given, targets=False)
        assert batch.size == 5 and batch.inputs.keys() == given.keys()


def test_several_inputs_stand_before_targets_and_indices():
    (batch,) = Data.of(((X, Y, X, Y), (Y, X, Y, X)))
    assert [len(side) for side in batch.pair] == [4, 4]
    (batch,) = Data.of(((X, Y), Y, torch.arange(5)))
    assert [torch.equal(*pair) for pair in zip(batch.inputs, (X, Y), strict=True)] == [True] * 2
    assert torch.equal(batch.target, Y) and batch.sample_weight is None


def test_data_that_can_be_read_once_are_named():
    pairs = [(X, Y)]
    for data in (pairs, (X, Y), Data.of(iter(pairs)).held()):
        Data.of(data).check_rewindable("every product")
    with pytest.raises(ValueError) as caught:
        Data.of(iter(pairs)).check_rewindable("every product")
    assert str(caught.value) == (
        "data: got list_iterator, which can be read only once, but every product reads the data "
        "again; pass list(data), a DataLoader or the tensors themselves"
    )


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
@pytest.mark.parametrize("factor", [torch.tensor(3.0), 3.0], ids=["tensor", "number"])
def test_few_samples_beside_a_number_and_batches_of_other_lengths(
    generator, sizes, lengths, factor
):
    net, data = Scaled(), []
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
    ("data", "sizes"),
    [((X, Y), [2, 2, 1]), ([(X, Y), (X[:3], Y[:3])], [5, 3]),
     (rt.Images(pixels=X, labels=Y), [2, 2, 1])],
)  # fmt: skip
def test_batches_that_are_given_stay_as_they_are(data, sizes):
    held = Data.of(data).held() if isinstance(data, list) else Data.of(data)
    for some in (Data.of(data), held):
        parts = list(some.chunks(2))
        assert [part.size for part in parts] == sizes
        assert [part.first for part in parts] == [sum(sizes[:k]) for k in range(len(sizes))]
        assert [batch.first for batch in some.only(parts[-1])] == [0]
        assert torch.equal(torch.cat([part.pair[0] for part in parts])[:5], X)


def test_a_bar_counts_the_batches_of_a_loader(capsys):
    loader = DataLoader(TensorDataset(X, Y), batch_size=2)
    for data in (loader, (X, Y)):
        rt.layer_cushions(nn.Linear(2, 1), data, batch=2, progress=True)
        assert "3/3" in capsys.readouterr().err
    rt.layer_cushions(nn.Linear(2, 1), (pair for pair in loader), progress=True)
    assert "3it" in capsys.readouterr().err
    list(Data.of(loader).held().chunks(1, "held"))
    assert "held: 100%" in (shown := capsys.readouterr().err) and "3/3" in shown


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
    for given in ((images, Y), [(images, Y)]):
        for read in (rt.evaluate, rt.layer_cushions):
            with pytest.raises(ValueError) as caught:
                read(nn.Linear(2, 3), given)
            assert str(caught.value) == (
                "data x: got Images, which have targets of their own; pass them as data"
            )
    assert torch.equal(images.inputs(X, torch.float64), X)  # not normalized
    assert images.inputs(X, torch.float32).dtype == torch.float32


class Builtin(nn.Module):
    """Its forward shows no signature."""

    def __init__(self, forward):
        super().__init__()
        self.forward = forward


@pytest.mark.parametrize(
    ("forward", "x"), [(torch.tanh, X), (torch.add, (X, 2 * X))], ids=["one", "two"]
)
def test_a_net_without_a_signature_is_called(forward, x):
    output = forward(*x) if isinstance(x, tuple) else forward(x)
    net = Builtin(forward)
    if x is X:  # by name, too
        (batch,) = Data.of({"input": X}, like=net, targets=False)
        assert torch.equal(batch.call(net), output)
    found = rt.evaluate(net, (x, X), loss="square").loss
    assert found == pytest.approx(0.5 * (output - X).square().sum().item() / 5, rel=1e-12)


# -- passes ----------------------------------------------------------------------------------------


def record(*batches):
    made = PassRecord()
    for x, y, weight in batches:
        made.add(Batch(content=(x, y), size=len(x), sample_weight=weight))
    return made


def test_passes_over_the_data_are_told_apart():
    x, y, weight = torch.randn(6, 2), torch.arange(6), torch.rand(6)

    def cut(*sizes, rows=slice(None), x=x, y=y, weight=weight):
        parts = (each[rows].split(sizes) for each in (x, y, weight))
        return record(*zip(*parts, strict=True))

    usual, top = cut(4, 2), torch.where(torch.arange(6) == 4, -(2**63), 0)
    assert usual.difference(cut(4, 2)) == "none"
    assert usual.difference(cut(2, 4)) == usual.difference(cut(4, 2, rows=[1, 0, 2, 3, 5, 4]))
    assert usual.difference(cut(2, 4)) == "order"
    changed = {
        "fewer": cut(4, 1, rows=slice(5)),
        "inputs": cut(4, 2, x=x.where(x != x[4, 1], 0.0)),
        "columns": cut(4, 2, x=x.flip(1)),
        "targets of others": cut(4, 2, y=y.flip(0)),
        "the top bit of a target": cut(4, 2, y=y ^ top),
        "weights": cut(4, 2, weight=weight.flip(0)),
        "no weights": record((x[:4], y[:4], None), (x[4:], y[4:], None)),
        "the imaginary part": cut(4, 2, x=torch.complex(x, x)),
    }
    assert {name: usual.difference(other) for name, other in changed.items()} == dict.fromkeys(
        changed, "samples"
    )
    both = [record((a, b, None)) for a, b in ((y, y + 1), (y + 1, y))]
    assert both[0].difference(both[1]) == "samples"


def test_what_a_batch_shares_counts_and_what_has_no_axes_or_entries_does_not():
    def shared(*rest):
        made = PassRecord()
        made.add(Batch(content=[torch.arange(3), *rest], size=3))
        return made

    usual = shared(torch.tensor([7, 8]))
    assert usual.difference(shared(torch.tensor([7, 9]))) == "samples"
    assert usual.difference(shared(torch.tensor([7, 8]), torch.tensor(1), torch.ones(0))) == "none"


@pytest.mark.parametrize("images", [False, True], ids=["pair", "images"])
def test_tensors_that_are_written_between_passes_are_refused(images):
    x, y = torch.ones(2, 3, 4, 4), torch.tensor([0, 1])
    data = rt.Data.of(rt.Images(pixels=x, labels=y) if images else (x, y))
    assert [batch.size for batch in (*data, *data)] == [2, 2]
    x[1] = 2.0
    with pytest.raises(ValueError, match="^data: tensors were written in place since they were"):
        list(data)
    assert len(list(rt.Data.of(data))) == 1
