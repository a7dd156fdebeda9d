"""Whitened data: laws of whitening, rank policies, and files that are absent or damaged."""

import gzip
import hashlib
import itertools
import os
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from resid_theory.data import (
    download,
    load_images,
    load_mnist,
    load_whitened,
    mnist,
    one_hot,
    whiten,
    whitening,
)

EPS = torch.finfo(torch.float64).eps
NAMES = ["train-images-idx3-ubyte", "train-labels-idx1-ubyte",
         "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"]  # fmt: skip
# Singular-value ratios of I - Syx found independently of this code, with the signs that LAPACK
# happened to give; these are those signs, relative to the rule of `Whitening.directions`.
KNOWN = {
    "digits": (1.6013, [1, 1, -1, 1, -1, 1, 1, 1, -1, 1]),
    "mnist": (1.4736, [-1, -1, -1, -1, -1, 1, 1, 1, -1, -1]),
}


@pytest.fixture(scope="module", params=["digits", "mnist"])
def either(request):
    """Name and ten whitened components of each data set."""
    if request.param == "mnist":
        skip_without_mnist()
    return request.param, load_whitened(request.param, 10)


def skip_without_mnist():
    given = os.environ.get("RESID_THEORY_DATA")
    if not given:
        pytest.skip("RESID_THEORY_DATA is not set, so MNIST is not read")
    for name in NAMES:
        if not any((Path(given) / sub / f"{name}.gz").is_file() for sub in ("mnist", ".")):
            pytest.skip(f"RESID_THEORY_DATA has no {name}.gz")


def digits(name):
    """Pixels or labels of all digits; test_images holds them against those of scikit-learn."""
    parts = [load_images("digits", part, size=None, channels=None) for part in ("train", "test")]
    return torch.cat([getattr(part, name) for part in parts])


def digit_pixels():
    return digits("pixels").flatten(1).double() / 16


def round_off(whitening):
    """Eigenvectors of a covariance are exact for one perturbed by p · eps · (largest eigenvalue).

    Division by the scales then magnifies the perturbation by 1 / (smallest eigenvalue kept).
    """
    values = whitening.eigenvalues
    return len(values) * EPS * float(values[0] / whitening.scales[-1] ** 2)


# Whitening -------------------------------------------------------------------------------------


@pytest.mark.parametrize("components", [1, 10, 61])
def test_second_moment_is_the_identity_to_round_off(components):
    x, whitening = whiten(digit_pixels(), components)
    tolerance = round_off(whitening)
    assert_close(x.T @ x / len(x), torch.eye(components), atol=tolerance, rtol=0)
    assert_close(x.mean(0), torch.zeros(components), atol=tolerance, rtol=0)


def test_projections_agree_with_a_singular_value_decomposition():
    pixels = digit_pixels().numpy()
    u, s, vt = np.linalg.svd(pixels - pixels.mean(0), full_matrices=False)
    signs = np.sign(vt[np.arange(10), np.abs(vt[:10]).argmax(1)])
    x, whitening = whiten(torch.from_numpy(pixels), 10)
    assert len(repr(whitening)) < 100
    # Rotations inside near-degenerate pairs: round-off over the smallest relative gap.
    gap = float((-whitening.eigenvalues[:11].diff() / whitening.eigenvalues[0]).min())
    tolerance = round_off(whitening) / gap
    assert_close(x.numpy(), signs * u[:, :10] * len(pixels) ** 0.5, atol=tolerance, rtol=0)
    assert_close(whitening.directions.T.numpy(), signs[:, None] * vt[:10], atol=tolerance, rtol=0)
    assert_close(whitening.eigenvalues.numpy(), s**2 / len(pixels), atol=tolerance, rtol=0)
    assert_close(whitening.scales.numpy(), s[:10] / len(pixels) ** 0.5, atol=tolerance, rtol=0)


def test_turned_inputs_give_the_same_directions():
    # An eigensolver's own signs change when the features are permuted; ours may not.
    pixels = digit_pixels()
    x, _ = whiten(pixels, 10)
    y, _ = whiten(pixels.flip(1), 10)
    assert_close(y, x, atol=1e-10, rtol=0)  # round-off over the gaps between eigenvalues


def test_apply_is_the_map_that_was_fitted():
    pixels = digit_pixels()
    x, whitening = whiten(pixels, 5)
    expected = (pixels - pixels.mean(0)) @ whitening.directions / whitening.scales
    assert_close(whitening.apply(pixels), x, atol=0, rtol=0)
    assert_close(x, expected, atol=64 * EPS * float(x.abs().max()), rtol=0)


def test_chunks_change_nothing_but_round_off(monkeypatch):
    whole, fitted = whiten(digit_pixels(), 10)
    monkeypatch.setattr(whitening, "_ROWS", 100)  # ragged: 1797 = 17 * 100 + 97
    chunked, _ = whiten(digit_pixels(), 10)
    assert_close(chunked, whole, atol=1e3 * round_off(fitted), rtol=0)  # 1e3: eigenvalue gaps


def test_large_offsets_do_not_cost_digits():
    # One-pass covariance (moment minus mean squared) would lose all of these variances.
    shifted = digit_pixels() + 2.0**26
    x, _ = whiten(shifted, 10)
    assert_close(x, whiten(digit_pixels(), 10)[0], atol=1e-6, rtol=0)  # the mean rounds at 2^-26


# Rank ------------------------------------------------------------------------------------------


def test_too_many_components_are_refused_with_the_rank_or_truncated_on_request():
    with pytest.raises(ValueError, match=r"got 64.*1797.*64 features.*rank 61.*max\(m, p\)"):
        load_whitened("digits", 64)
    x = load_whitened("digits", 64, rank="truncate").x
    assert x.shape == (1797, 61)
    assert load_whitened("digits", 7, rank="truncate").x.shape == (1797, 7)
    assert_close(x, load_whitened("digits", 61).x, atol=0, rtol=0)


@pytest.mark.parametrize(("samples", "rank"), [(2, 1), (30, 29), (1797, 61)])
def test_few_samples_have_rank_one_less_and_digits_61(samples, rank):
    assert whiten(digit_pixels()[:samples], 1)[1].rank == rank


@pytest.mark.parametrize(("share", "rank"), [(0.8, 1), (1.2, 2)])
def test_a_variance_counts_from_round_off_of_all_samples_on(generator, share, rank):
    x = torch.randn(2000, 2, generator=generator)
    x = torch.linalg.qr(x - x.mean(0)).Q * torch.tensor([1.0, (share * 2000 * EPS) ** 0.5])
    assert whiten(x, 1)[1].rank == rank


@pytest.mark.parametrize("policy", ["error", "truncate"])
def test_constant_features_have_no_component(policy):
    with pytest.raises(ValueError, match="rank 0.*vary"):
        whiten(torch.ones(8, 3), 1, rank=policy)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"name": "mnits"}, "name.*'mnits'.*'mnist'"),
        ({"name": "digits", "components": 0}, "components.*0.*1"),
        ({"name": "digits", "components": 2.5}, "components.*2.5"),
        ({"name": "digits", "samples": 0}, "samples.*0"),
        ({"name": "digits", "samples": 1798}, "samples.*1798.*1797"),
        ({"name": "digits", "rank": "trunc"}, "rank.*'trunc'.*'truncate'"),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_wrong_arguments_are_named(given, message):
    with pytest.raises(ValueError, match=message):
        load_whitened(**given)


@pytest.mark.parametrize(
    ("x", "message"),
    [(torch.zeros(0, 3), "got shape"), (torch.zeros(2, 2, 2), "got shape"),
     (torch.tensor([[0.0, 1.0], [0.0, torch.nan]]), r"entry \(1, 1\)")],
    ids=["empty", "axes", "nan"],
)  # fmt: skip
def test_what_is_no_finite_matrix_is_refused(x, message):
    with pytest.raises(ValueError, match=f"x: {message}"):
        whiten(x, 1)


# Data sets -------------------------------------------------------------------------------------


def test_whitened_data_have_the_promised_form(either):
    name, got = either
    count = {"digits": 1797, "mnist": 60_000}[name]
    assert (got.x.shape, got.y.shape) == ((count, 10), (count, 10))
    assert got.x.dtype == got.y.dtype == torch.float64
    assert_close(got.y.sum(1), torch.ones(count), atol=0, rtol=0)
    # 1e3 stands for the ratio of the largest eigenvalue to the tenth (below 10) with room.
    assert_close(got.x.T @ got.x / count, torch.eye(10), atol=1e3 * 64 * EPS, rtol=0)


def test_condition_number_of_the_theorem_and_least_loss_of_a_linear_map(either):
    name, got = either
    expected, signs = KNOWN[name]
    cross = got.y.T @ (got.x * torch.tensor(signs)) / len(got.x)
    s = torch.linalg.svdvals(torch.eye(10) - cross)
    assert_close(float(s[0] / s[-1]), expected, atol=5e-5, rtol=0)  # the digits printed
    # Half of tr(Syy - Syx Syx^T), tr Syy = 1: no sign matters here.
    least = 0.5 * (1 - float((cross**2).sum()))
    assert_close(least, {"digits": 0.276599, "mnist": 0.337141}[name], atol=5e-7, rtol=0)


def test_class_priors_bound_the_condition_number_for_all_signs(either):
    _, got = either
    cross = got.y.T @ got.x / len(got.x)
    prior = float(got.y.mean(0).max()) ** 0.5
    signs = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=10)))
    s = torch.linalg.svdvals(torch.eye(10) - cross * signs[:, None, :])
    assert float(torch.linalg.matrix_norm(cross, 2)) <= prior
    assert float((s[:, 0] / s[:, -1]).max()) <= (1 + prior) / (1 - prior)


def test_first_samples_are_taken_before_whitening():
    got = load_whitened("digits", 10, samples=300)
    x, _ = whiten(digit_pixels()[:300], 10)
    assert_close(got.x, x, atol=0, rtol=0)
    assert_close(got.y, one_hot(digits("labels")[:300], 10), atol=0, rtol=0)


def test_two_calls_give_the_same_bits():
    one, other = load_whitened("digits", 10), load_whitened("digits", 10)
    assert torch.equal(one.x, other.x) and torch.equal(one.y, other.y)


@pytest.mark.parametrize(("split", "count"), [("train", 60_000), ("test", 10_000)])
def test_mnist_is_complete(split, count):
    skip_without_mnist()
    images, labels = load_mnist(split)
    assert images.shape == (count, 28, 28) and images.dtype == torch.uint8
    assert labels.shape == (count,) and labels.dtype == torch.int64
    assert sorted(set(labels.tolist())) == list(range(10))
    assert (int(images.min()), int(images.max())) == (0, 255)
    if split == "train":
        assert labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
        assert_close(float(images.double().mean() / 255), 0.1307, atol=5e-5, rtol=0)
        assert int(labels.bincount().max()) == 6742


# One-hot ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "labels",
    [[2, 0, 1], np.array([2.0, 0.0, 1.0]), torch.tensor([2, 0, 1], dtype=torch.uint8)],
    ids=["list", "floats", "uint8"],
)
def test_one_hot_rows(labels):
    expected = torch.tensor([[0.0, 0, 1, 0], [1, 0, 0, 0], [0, 1, 0, 0]])
    assert_close(one_hot(labels, 4), expected, atol=0, rtol=0)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1, 3], "label 3 at position 2.*1 of 3"),
        ([0, -1, -2], "label -1 at position 1.*2 of 3"),
        ([0.5], "label 0.5 at position 0"),
        ([0.0, float("nan")], "label nan at position 1"),
        ([0.0, float("inf")], "label inf at position 1"),
        ([[0, 1]], r"shape \(1, 2\)"),
        ([1j], "complex"),
    ],
    ids=str,
)
def test_one_hot_refuses_what_is_no_class(labels, message):
    with pytest.raises(ValueError, match=f"labels.*{message}"):
        one_hot(labels, 3)


# Files -----------------------------------------------------------------------------------------


def idx(array):
    """An array of bytes in the IDX format, compressed."""
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return gzip.compress(bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes(), mtime=0)


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Three tiny images under the official names in a mirror; no network, empty cache."""
    images = np.arange(3 * 28 * 28, dtype=np.uint8).reshape(3, 28, 28)
    files = {NAMES[0]: idx(images), NAMES[1]: idx(np.array([7, 0, 9], dtype=np.uint8))}
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    for name, content in files.items():
        (mirror / f"{name}.gz").write_bytes(content)
        monkeypatch.setitem(mnist._SHA256, name, hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(mnist, "_MIRRORS", (mirror.as_uri() + "/",))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "cache"))
    monkeypatch.delenv("RESID_THEORY_DATA", raising=False)
    return tmp_path


def check_small(images, labels):
    assert labels.tolist() == [7, 0, 9]
    expected = torch.arange(3 * 28 * 28, dtype=torch.uint8).reshape(3, 28, 28)
    assert_close(images, expected, atol=0, rtol=0)


def no_mirrors(monkeypatch, folder):
    monkeypatch.setattr(mnist, "_MIRRORS", ((folder / "nowhere").as_uri() + "/",))


def test_a_missing_file_is_downloaded_once(small, monkeypatch):
    check_small(*load_mnist("train", progress=False))
    kept = sorted(p.name for p in (small / "cache" / "resid_theory" / "mnist").iterdir())
    assert kept == [f"{NAMES[0]}.gz", f"{NAMES[1]}.gz"]
    no_mirrors(monkeypatch, small)
    check_small(*load_mnist("train", progress=False))


LOADS = {
    "load_mnist": lambda progress: load_mnist("train", progress=progress),
    "load_images": lambda progress: load_images("mnist", progress=progress),
    "load_whitened": lambda progress: load_whitened("mnist", 1, progress=progress),
}


@pytest.mark.parametrize("name", LOADS)
@pytest.mark.parametrize("progress", [False, True])
def test_a_bar_is_shown_where_it_is_asked_for(small, capsys, name, progress):
    LOADS[name](progress)
    assert bool(capsys.readouterr().err) == progress


@pytest.mark.parametrize("sub", ["mnist", "."])
def test_the_named_folder_comes_first(small, monkeypatch, sub):
    folder = small / "given" / sub
    folder.mkdir(parents=True)
    for file in (small / "mirror").iterdir():
        file.rename(folder / file.name)
    monkeypatch.setenv("RESID_THEORY_DATA", str(small / "given"))
    check_small(*load_mnist("train", progress=False))
    assert not (small / "cache").exists()


@pytest.mark.parametrize("content", [None, b"a login page"], ids=["dead", "spoiled"])
def test_a_mirror_without_the_file_is_passed_over(small, monkeypatch, content):
    other = small / "other"
    if content is not None:
        other.mkdir()
        for name in NAMES[:2]:
            (other / f"{name}.gz").write_bytes(content)
    monkeypatch.setattr(mnist, "_MIRRORS", (other.as_uri() + "/", *mnist._MIRRORS))
    check_small(*load_mnist("train", progress=False))


def test_without_network_the_error_says_what_to_set(small, monkeypatch):
    monkeypatch.setenv("RESID_THEORY_DATA", str(small / "given"))
    no_mirrors(monkeypatch, small)
    with pytest.raises(FileNotFoundError) as caught:
        load_mnist("train", progress=False)
    message = str(caught.value)
    cache = small / "cache" / "resid_theory" / "mnist"
    for part in (f"{NAMES[0]}.gz", small / "given" / "mnist", cache, "set RESID_THEORY_DATA"):
        assert str(part) in message
    assert not list(cache.iterdir())  # no half file stays behind


@pytest.mark.parametrize("harm", ["flipped", "truncated", "empty"])
def test_a_damaged_file_is_named_with_both_checksums(small, monkeypatch, harm):
    load_mnist("train", progress=False)
    path = small / "cache" / "resid_theory" / "mnist" / f"{NAMES[0]}.gz"
    content = bytearray(path.read_bytes())
    content[20] ^= 4
    path.write_bytes({"flipped": content, "truncated": content[:50], "empty": b""}[harm])
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(ValueError, match="delete the file") as caught:
        load_mnist("train", progress=False)
    for part in (str(path), found, mnist._SHA256[NAMES[0]]):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\0\0\x08\x01" + b"\0\0\0\x02" + b"ab", None),
        (b"\0\0\x0d\x01" + b"\0\0\0\x02" + b"ab", "begins with"),
        (b"\0\0\x08\x03" + b"\0\0\0\x02" + b"ab", "begins with"),
        (b"\0\0\x08\x01" + b"\0\0\0\x03" + b"ab", r"holds 2 values.*\[3\]"),
        (b"\0\0\x08\x01" + b"\0\0\0\x01" + b"ab", r"holds 2 values.*\[1\]"),
        (b"\0\0\x08\x01", "holds"),
    ],
    ids=["good", "floats", "three_axes", "short", "long", "no_sizes"],
)
def test_idx_headers_are_checked(content, message):
    path = Path("train-labels-idx1-ubyte.gz")
    if message is None:
        assert mnist._parse_idx(content, path).tolist() == [97, 98]
        return
    with pytest.raises(ValueError, match=f"train-labels.*{message}"):
        mnist._parse_idx(content, path)


@pytest.mark.parametrize(
    ("platform", "variable", "usual"),
    [
        ("linux", "XDG_CACHE_HOME", ".cache"),
        ("darwin", "XDG_CACHE_HOME", "Library/Caches"),
        ("win32", "LOCALAPPDATA", "AppData/Local"),
    ],
)
def test_cache_folder(monkeypatch, tmp_path, platform, variable, usual):
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    assert download._cache_folder(platform) == tmp_path / usual / "resid_theory"
    monkeypatch.setenv(variable, str(tmp_path / "set"))
    assert download._cache_folder(platform) == tmp_path / "set" / "resid_theory"


def test_a_silent_network_is_not_waited_for(small, monkeypatch):
    limits = []

    def hang(*_):
        limits.append(socket.getdefaulttimeout())
        raise TimeoutError("timed out")

    monkeypatch.setattr(torch.hub, "download_url_to_file", hang)
    with download._time_limit(77.0):
        with pytest.raises(FileNotFoundError, match="timed out"):
            load_mnist("train", progress=False)
        assert limits == [20.0] and socket.getdefaulttimeout() == 77.0


@pytest.mark.parametrize("name", NAMES)
def test_the_table_holds_the_official_checksums(name):
    skip_without_mnist()
    folder = next(f for f in download.search_folders("mnist") if (f / f"{name}.gz").is_file())
    assert hashlib.sha256((folder / f"{name}.gz").read_bytes()).hexdigest() == mnist._SHA256[name]
