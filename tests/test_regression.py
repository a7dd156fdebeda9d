"""Data sets in memory: what joins to one, and what does not."""

import pytest
import torch
from tolerances import relative_error, round_off

from resid_theory.data.regression import Regression, gather

X = torch.arange(10.0, dtype=torch.float64).view(5, 2)
Y = -X[:, :1]


def test_counts_and_moments():
    data = Regression(X, Y)
    assert data.count == 5
    assert data.moments is data.moments
    assert relative_error(data.moments.sxx, X.T @ X / 5) <= round_off(5)
    assert relative_error(data.moments.syx, Y.T @ X / 5) <= round_off(5)


def test_moving_keeps_the_numbers():
    moved = Regression(X, Y).to(torch.float32)
    assert (moved.x.dtype, moved.y.dtype) == (torch.float32, torch.float32)
    # the moments of float32 data are float64, and these numbers are exact in both
    assert moved.moments.sxx.dtype == torch.float64
    assert torch.equal(moved.moments.sxx, Regression(X, Y).moments.sxx)


def test_gathering_a_gathered_set_changes_nothing():
    data = Regression(X, Y)
    assert gather(data) is data


@pytest.mark.parametrize(
    "data",
    [
        pytest.param((X, Y), id="pair"),
        pytest.param([(X[:3], Y[:3]), (X[3:], Y[3:])], id="ragged"),
        pytest.param(Regression(X, Y).to(torch.float32), id="float32"),
        pytest.param((X.numpy().astype("int32"), Y.numpy()), id="integers"),
    ],
)
def test_all_samples_in_float64(data):
    joined = gather(data)
    assert joined.x.dtype == joined.y.dtype == torch.float64
    assert torch.equal(joined.x, X)
    assert torch.equal(joined.y, Y)


REGRESSIONS = {
    "array": ((X.numpy(), Y), "^x: got ndarray, needs a tensor; .* gather"),
    "vector": ((X, Y[:, 0]), r"^y: got shape \(5,\)"),
    "integers": ((X, Y.long()), "^y: got shape .* dtype torch.int64"),
    "empty": ((X[:0], Y[:0]), "^x: .* needs a non-empty"),
    "counts": ((X, Y[:4]), "^y: got 4 samples for 5 in x"),
    "nan": ((X, Y / 0), r"^y: entry \(0, 0\) is nan"),
    "complex": ((X + 1j, Y), "^x: .*complex"),
}


@pytest.mark.parametrize("kind", REGRESSIONS)
def test_not_a_regression(kind):
    given, message = REGRESSIONS[kind]
    with pytest.raises(ValueError, match=message):
        Regression(*given)


GATHERED = {
    "widths": ([(X, Y), (X[:, :1], Y)], r"^data: samples of different shapes"),
    "targets": ([(X, Y), (X, X)], r"^data: samples of different shapes"),
    "labels": ((X, torch.arange(5)), r"^y: got class labels of shape \(5,\).*one_hot\(labels"),
    "vector": ((X, Y[:, 0]), r"^y: got shape \(5,\)"),
    "images": ((X.view(5, 1, 2), Y), r"^x: got shape \(5, 1, 2\)"),
}


@pytest.mark.parametrize("kind", GATHERED)
def test_what_does_not_join(kind):
    data, message = GATHERED[kind]
    with pytest.raises(ValueError, match=message):
        gather(data)
