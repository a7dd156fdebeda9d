"""Every wiring at zero weights: predicted against nested gradients of nets and of architectures."""

import itertools
import math
import pickle
from dataclasses import replace

import oracles
import pytest
import torch
from all_pairs import all_pairs
from scipy.sparse.linalg import ArpackNoConvergence
from tolerances import EPS, HESSIAN
from torch import nn
from torch.nn import functional as F

import resid_theory as rt
from resid_theory.networks import LayoutNet, layout_of
from resid_theory.networks.wiring import single_stream
from resid_theory.theory import Layout, Semiseparable

D, SAMPLES = 3, 9


@pytest.fixture(autouse=True)
def single_precision(float64):
    """torch's own default, which no coefficient may take."""
    torch.set_default_dtype(torch.float32)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def data(seed=0):
    return drawn(SAMPLES, D, seed=seed), drawn(SAMPLES, D, seed=seed + 1)


def measured(net, x, y, loss="square"):
    value = getattr(oracles, f"{loss}_loss" if loss == "square" else loss)(net(x), y)
    matrix = oracles.hessian_by_nested_gradients(value, list(net.parameters()))
    return torch.linalg.eigvalsh(matrix)


def random_layout(seed):
    """Dense or sparse, one to three matrices in a block, up to six blocks."""
    generator = torch.Generator().manual_seed(seed)
    count, branch = (int(torch.randint(1, top, (), generator=generator)) for top in (7, 4))
    table = torch.randn(count + 1, count + 1, generator=generator, dtype=torch.float64).tril()
    if seed % 2:
        kept = torch.rand(table.shape, generator=generator) < 0.5
        table = torch.where(kept, table, 0.0)
    return Layout(table[:count, :count], table[-1], min(branch, 2 if count > 3 else 3))


@pytest.mark.parametrize("seed", range(40))
def test_random_layouts(seed):
    kind = ("linear", "tanh", "cross_entropy", "hidden")[seed // 2 % 4]
    layout, (x, y) = random_layout(seed), data(seed)
    options, loss = {}, "square"
    if kind == "cross_entropy":
        loss, y = kind, F.one_hot(y.argmax(1), D).double()
    elif kind == "tanh" and layout.branch > 1:
        options = {"mid": "tanh", "post": "tanh"}
    elif kind == "hidden" and layout.branch > 1:
        options = {"hidden": 4}
    net = LayoutNet(D, *layout.coefficients(), branch=layout.branch, **options)
    point = rt.theory.zero_point((x, y), layout=Layout(*layout_of(net)), loss=loss, **options)
    values = measured(net, x, y, loss)
    scale = max(1.0, float(values.abs().max()))
    assert float((point.spectrum.eigenvalues - values).abs().max()) <= HESSIAN * scale
    value = getattr(oracles, "cross_entropy" if loss != "square" else "square_loss")(net(x), y)
    gradients = torch.autograd.grad(value, list(net.weights), allow_unused=True)
    if layout.branch == 1:
        for found, exact in zip(point.gradient, gradients, strict=True):
            assert float((found - (0 if exact is None else exact)).abs().max()) <= HESSIAN * scale
    flat = all(g is None or not g.abs().max() > 1e-12 for g in gradients)
    assert (point.verdict == "not stationary") == (not flat)
    curved = bool(values.abs().max() > 1e-12)
    assert (point.order <= 1) == curved or flat and point.order == 0


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("shortcut", [True, False])
def test_shortcut_nets_have_the_layouts_of_their_names(n, shortcut):
    x, y = data()
    net = rt.ShortcutNet(D, 3, n, shortcut=shortcut)
    made = (Layout.shortcut if shortcut else Layout.plain)(3, branch=n)
    read = Layout(*layout_of(net))
    for ours, theirs in zip(made.coefficients(), layout_of(net), strict=False):
        torch.testing.assert_close(theirs, ours, rtol=0, atol=0)  # in double precision, too
    assert torch.equal(made.products, read.products) and made.direct == read.direct
    values = measured(net, x, y)
    found = rt.theory.zero_point((x, y), layout=made).spectrum.eigenvalues
    assert float((found - values).abs().max()) <= HESSIAN * max(1.0, float(values.abs().max()))
    if shortcut:
        old = rt.theory.zero_point((x, y), blocks=3, shortcut_depth=n).spectrum.eigenvalues
        assert float((found - old).abs().max()) <= 1e-13 * max(1.0, float(old.abs().max()))


class Wired(nn.Module):
    """Architectures as their papers write them, with linear blocks W2 W1."""

    def __init__(self, kind, blocks, seed=0):
        super().__init__()
        self.kind, self.streams = kind, 3
        self.first = nn.Parameter(torch.zeros(blocks, D, D, dtype=torch.float64))
        self.second = nn.Parameter(torch.zeros(blocks, D, D, dtype=torch.float64))
        self.skip, self.scale = 1 + 0.3 * drawn(blocks, seed=seed), drawn(blocks, seed=seed + 1)
        self.dense = drawn(blocks + 1, blocks + 1, seed=seed + 2).tril()
        self.read, self.write = drawn(blocks, 3, seed=seed + 3), drawn(blocks, 3, seed=seed + 4)
        self.mix = torch.eye(3).double() + 0.3 * drawn(blocks, 3, 3, seed=seed + 5)
        self.start, self.readout = drawn(2, 3, seed=seed + 6)

    def block(self, k, u):
        return u @ self.first[k].mT @ self.second[k].mT

    def forward(self, x):
        count = len(self.first)
        if self.kind == "scaled":
            for k in range(count):
                x = self.skip[k] * x + self.scale[k] * self.block(k, x)
            return x
        if self.kind == "dense":
            y, kept = self.dense[0, 0] * x, [x]
            for k in range(count):
                kept.append(y + self.block(k, y))
                y = sum(w * v for w, v in zip(self.dense[k + 1], kept, strict=False))
            return y
        if self.kind == "averaged":
            sources = [x]
            for k in range(count):
                sources.append(self.block(k, sum(sources) / len(sources)))
            return sum(sources) / len(sources)
        given = self.kind == "streams, given"
        streams = torch.stack([s * x for s in self.start] if given else [x] * 3)
        for k in range(count):
            out = self.block(k, torch.einsum("n,nmd->md", self.read[k], streams))
            streams = torch.einsum("an,nmd->amd", self.mix[k], streams)
            streams = streams + self.write[k][:, None, None] * out
        if given:
            return sum(share * stream for share, stream in zip(self.readout, streams, strict=True))
        return streams.mean(0) if self.kind == "streams, mean" else streams.sum(0)

    def layout(self):
        if self.kind == "scaled":
            return Layout.scaled(len(self.first), skip=self.skip, scale=self.scale)
        if self.kind == "dense":
            return Layout.dense(self.dense)
        if self.kind == "averaged":
            return Layout.averaged(len(self.first))
        readout = self.kind.split(", ")[1]
        if readout == "given":
            return Layout.hyper_connections(
                self.read, self.mix, self.write, start=self.start.tolist(), readout=self.readout
            )
        return Layout.hyper_connections(self.read, self.mix, self.write, readout=readout)


KINDS = ["scaled", "dense", "averaged", "streams, mean", "streams, sum", "streams, given"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("blocks", [1, 2, 4])
def test_architectures_have_the_layouts_of_their_names(kind, blocks):
    (x, y), net = data(), Wired(kind, blocks)
    layout = net.layout()
    reads, out = layout.coefficients()
    assert torch.allclose(layout.products, reads[:, 0] * out[1:], rtol=1e-12, atol=0)
    assert layout.direct == pytest.approx(out[0].item(), rel=1e-12)
    # At weights away from zero the whole table counts.
    wired = LayoutNet(D, reads, out, branch=2)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(drawn(*parameter.shape, seed=8))
        for k in range(blocks):
            wired.weights[2 * k].copy_(net.first[k])
            wired.weights[2 * k + 1].copy_(net.second[k])
        assert float((net(x) - wired(x)).norm()) <= 1e3 * EPS * float(net(x).norm())
        for parameter in net.parameters():
            parameter.zero_()
    values, point = measured(net, x, y), rt.theory.zero_point((x, y), layout=layout)
    scale = max(1.0, float(values.abs().max()))
    assert float((point.spectrum.eigenvalues - values).abs().max()) <= HESSIAN * scale


@pytest.mark.parametrize(
    ("entry", "off", "fits"),
    [((4, 0), sign * 0.9e-12, True) for sign in (1, -1)]
    + [((4, 0), sign * 1.1e-12, False) for sign in (1, -1)]
    + [((0, 0), 1.0, False)],
)
def test_one_stream_is_read_off_its_coefficients(entry, off, fits):
    skip, scale, rows = [-2.0, 0.0, 0.0, -3.0], [-7.0, 0.0, -0.5, 1.0], [[1.0]]
    for factor, own in zip(skip, scale, strict=True):
        rows.append([*(factor * number for number in rows[-1]), own])
    table = torch.tensor([[*row, *[0] * (5 - len(row))] for row in rows], dtype=torch.float64)
    table[entry] += off * float(table[entry[0]].abs().max())
    if fits:
        found = single_stream(table[:4, :4], table[4])
        assert [part.tolist() for part in found] == [skip, scale]
        return
    with pytest.raises(ValueError, match="^layout: a normalized stream needs the coefficients of"):
        single_stream(table[:4, :4], table[4])


# -- matrices, normalizations, biases --------------------------------------------------------------

EYE = torch.eye(D, dtype=torch.float64)


def one_layer():
    return Layout.scaled(2, scale=0.5, branch=1)


def point_of(layout=None, **options):
    layout = Layout.scaled(2, scale=[0.5, 1.0]) if layout is None else layout
    return rt.theory.zero_point(data(), layout=layout, **options)


def random_maps(seed):
    """Rectangular layers, projections, gains and missing links: rows, read-out, widths."""
    generator = torch.Generator().manual_seed(seed)

    def number(low, high):
        return int(torch.randint(low, high + 1, (), generator=generator))

    count, outputs = number(1, 4), number(2, 4)
    inner, wide = ([number(1, 4) for _ in range(count)] for _ in range(2))
    sources = [D, *wide]

    def entry(rows, columns, needed):
        if not needed and number(0, 2) == 0:
            return None
        if rows == columns and number(0, 1):
            return torch.randn(rows, generator=generator).double()
        return torch.randn(rows, columns, generator=generator).double()

    rows = [[entry(inner[k], sources[j], j == 0) for j in range(k + 1)] for k in range(count)]
    out = [entry(outputs, sources[j], True) for j in range(count + 1)]
    return rows, out, inner, wide, outputs


def rms(u, gain):
    return gain * u / (u.square().mean(-1, keepdim=True) + 1e-6).sqrt()


def layer_norm(u, gain):
    centred = u - u.mean(-1, keepdim=True)
    return gain * centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() + 0.3 * gain**2


WIRED = {
    "maps": {},
    "maps, norms": {"norm": rms},
    "maps, activations": {"mid": torch.tanh, "post": torch.sin, "pre": torch.tanh},
    "maps, biases": {"bias": True, "last_bias": True, "post": lambda z: 0.6 * z},
    "maps, all": {"norm": layer_norm, "bias": True, "last_bias": True, "mid": torch.tanh},
    "maps, written": {"norm": rms, "norm_at": "write", "bias": True},
    "stream": {"norm": layer_norm, "norm_at": "stream", "bias": True, "pre": torch.sin},
    "numbers, norms": {"norm": layer_norm, "last_bias": True},
    "numbers, one norm": {"norm": layer_norm, "shared": True, "bias": True},
    "numbers, written": {"norm": rms, "norm_at": "write", "shared": True},
    "numbers, curved": {"post": lambda z: z + z**2, "bias": True},
}


def brute(x, rows, out, weights, biases, lasts, norm, case):
    """The net of a case as its definition reads; rows and out are matrices or numbers."""

    def seen(c, v):
        return c * v if c.dim() < 2 else v @ c.mT

    def block(k, u):
        z = norm(u, k) if norm and case.get("norm_at", "branch") == "branch" else u
        z = case.get("pre", lambda s: s)(z)
        for position, weight in enumerate(weights[k]):
            last = position == len(weights[k]) - 1
            z = z @ weight.mT
            z = z + biases[k] if biases and position == 0 else z
            z = z + lasts[k] if lasts and last else z
            z = case.get("post" if last else "mid", lambda s: s)(z)
        return norm(z, k) if norm and case.get("norm_at") == "write" else z

    if case.get("norm_at") == "stream":
        for k in range(len(weights)):  # rows and out are the scales of skip and branch here
            x = norm(rows[k] * x + out[k] * block(k, x), k)
        return x
    written = [x]
    for k, row in enumerate(rows):
        written.append(block(k, sum(seen(c, v) for c, v in zip(row, written, strict=False)
                                    if c is not None)))  # fmt: skip
    return sum(seen(c, v) for c, v in zip(out, written, strict=True) if c is not None)


def is_refused(name, branch, *_):
    return branch == 1 and WIRED[name].get("norm_at", "branch") != "branch"


@pytest.mark.parametrize(
    ("name", "branch", "loss", "seed"),
    all_pairs(WIRED, [1, 2, 3], ["square", "cross_entropy"], range(2), unless=is_refused),
)
def test_matrices_normalizations_and_biases(name, branch, loss, seed):
    case, hidden = dict(WIRED[name]), 2
    if name.startswith("maps"):
        rows, out, inner, wide, outputs = random_maps(10 * seed + branch)
        layout = Layout(rows, out, branch)
    else:
        table = drawn(4, 4, seed=seed + 5).tril()
        rows, out, outputs = list(table[:3, :3]), table[3], D
        layout = Layout(table[:3, :3], out, branch)
        if case.get("shared"):
            layout = Layout.scaled(3, scale=out[1:], branch=branch)
            rows, out = layout.coefficients()
        inner = wide = [D] * 3
        if name == "stream":
            rows, out = table[:3, 0], table[3, 1:]
            layout = Layout.scaled(3, skip=rows, scale=out, branch=branch)
    count = len(wide)
    x, y = drawn(SAMPLES, D, seed=seed), drawn(SAMPLES, outputs, seed=seed + 1)
    y = F.one_hot(y.argmax(1), outputs).double() if loss == "cross_entropy" else y
    weights = []
    for i, o in zip(inner, wide, strict=True):
        sizes = [i, *[hidden] * (branch - 1), o]
        weights.append([torch.zeros(b, a).double().requires_grad_()
                        for a, b in zip(sizes, sizes[1:], strict=False)])  # fmt: skip
    heads = [w[0].shape[0] for w in weights]
    last_bias = case.pop("last_bias", False) and branch > 1
    biases = [torch.zeros(h).double().requires_grad_() for h in heads if case.get("bias")]
    lasts = [torch.zeros(o).double().requires_grad_() for o in wide if last_bias]
    norm, shared, form = None, case.pop("shared", False), case.pop("norm", None)
    sizes = wide if case.get("norm_at") == "write" else inner
    if form:
        gains = [drawn(size, seed=0 if shared else 30 + k) for k, size in enumerate(sizes)]

        def norm(u, k):
            return form(u, gains[k])

        given = [lambda u, k=k: norm(u, k) for k in range(count)]
        case["norm"] = given[0] if shared else given
    value = getattr(oracles, "cross_entropy" if loss != "square" else "square_loss")(
        brute(x, rows, out, weights, biases, lasts, norm, case), y
    )
    every = [*(w for one in weights for w in one), *biases, *lasts]
    values = torch.linalg.eigvalsh(oracles.hessian_by_nested_gradients(value, every))
    options = {key: part for key, part in case.items() if key != "bias"}
    if branch > 1:
        options["hidden"] = hidden
    point = rt.theory.zero_point(
        (x, y), layout=layout, loss=loss, bias=bool(biases), last_bias=last_bias, **options
    )
    scale = max(1.0, float(values.abs().max()))
    assert point.spectrum.size == len(values)
    assert float((point.spectrum.eigenvalues - values).abs().max()) <= HESSIAN * scale
    gradients = torch.autograd.grad(value, every, materialize_grads=True)
    firsts = gradients[: count * branch : branch]
    if biases:
        firsts = [torch.cat([w, b[:, None]], 1) for w, b in
                  zip(firsts, gradients[count * branch :][:count], strict=True)]  # fmt: skip
    if branch == 1:
        for found, exact in zip(point.gradient, firsts, strict=True):
            assert float((found - exact).abs().max()) <= HESSIAN * scale
    still = all(float(g.abs().max()) <= 1e-12 * scale for g in gradients)
    assert (point.verdict == "not stationary") == (not still)
    if branch == 3 and not (biases or lasts):
        moved = [[drawn(*w.shape, seed=40 + k) for w in one] for k, one in enumerate(weights)]
        change = []
        for size in (1e-3, -1e-3):
            near = [[size * w for w in one] for one in moved]
            there = brute(x, rows, out, near, [], [], norm, case)
            kind = oracles.cross_entropy if loss != "square" else oracles.square_loss
            change.append(float(kind(there, y).detach()))
        jet = 1e-9 * float(point.leading_jet([w for one in moved for w in one]))
        curved = abs(jet) * 1e-2 + 1e-11  # paths of two blocks or curvature: of higher order
        assert abs((change[0] - change[1]) / 2 - jet) <= curved


@pytest.mark.parametrize("name", [
    "maps, all", "maps, activations", "stream", "maps, written", "numbers, norms"
])  # fmt: skip
def test_nets_of_all_parts_agree_with_their_definition(name):
    case, branch = dict(WIRED[name]), 2
    case["norm"] = nn.LayerNorm if name != "maps, written" else nn.RMSNorm
    if name == "stream":
        wires, outputs = ([0.5, 2.0, 1.0], [1.0, -1.0, 0.5]), D
        A, a = Layout.scaled(3, skip=wires[0], scale=wires[1]).coefficients()
    elif name == "numbers, norms":
        table, outputs = drawn(4, 4, seed=5).tril(), D
        wires = A, a = table[:3, :3], table[3]
    else:
        A, a, *_, outputs = random_maps(3)
        wires = A, a
    net = LayoutNet(D, A, a, branch=branch, hidden=2, **case)
    for number, part in enumerate(net.norms.parameters()):
        with torch.no_grad():
            part.copy_(0.0 * part if name == "maps, written" and part.dim() > 1
                       else drawn(*part.shape, seed=number))  # fmt: skip
    x, y = drawn(SAMPLES, D), drawn(SAMPLES, outputs, seed=1)
    free = list(net.weights) + list(net.biases) + list(net.last_biases)
    value = oracles.square_loss(net(x), y)
    values = torch.linalg.eigvalsh(oracles.hessian_by_nested_gradients(value, free))
    case["norm"], reads = list(net.norms), layout_of(net)
    point = rt.theory.zero_point((x, y), layout=Layout(*reads), hidden=2, **case)
    scale = max(1.0, float(values.abs().max()))
    assert float((point.spectrum.eigenvalues - values).abs().max()) <= HESSIAN * scale
    with torch.no_grad():
        for number, part in enumerate(free):
            part.copy_(drawn(*part.shape, seed=number))
        weights = [net.weights[n : n + branch] for n in range(0, len(net.weights), branch)]
        exact = brute(x, *wires, weights, list(net.biases), list(net.last_biases),
                      lambda u, k: net.norms[k](u), case)  # fmt: skip
        assert float((net(x) - exact).norm()) <= 1e3 * EPS * float(exact.norm())
    assert {c.dtype for c in layout_of(net.float())[1] if c is not None} == {torch.float64}


@pytest.mark.parametrize("kind", [*KINDS, "plain", "shortcut"])
def test_coefficients_are_in_double_precision(kind):
    named = {"plain": Layout.plain, "shortcut": Layout.shortcut}
    layout = named[kind](4) if kind in named else Wired(kind, 4).layout()
    layout = pickle.loads(pickle.dumps(layout))
    assert repr(layout).endswith(", blocks=4, branch=2)") or layout.name == kind
    reads, out = layout.coefficients()
    assert reads.dtype == out.dtype == layout.products.dtype == torch.float64
    assert torch.allclose(layout.products, reads[:, 0] * out[1:], rtol=1e-12, atol=0)
    assert layout.direct == pytest.approx(out[0].item(), rel=1e-12)


def counted(kind, make, monkeypatch):
    """Eigenvalues of one-layer blocks by a dense solver, and the zero point that counts them."""
    blocks = 12
    layout = {
        "streams": lambda: Layout.hyper_connections(
            drawn(blocks, 3), torch.eye(3) + 0.1 * drawn(blocks, 3, 3), drawn(blocks, 3, seed=1),
            branch=1,
        ),
        "averaged": lambda: Layout.averaged(blocks, branch=1),
        "scaled": lambda: Layout.scaled(blocks, skip=0.9, scale=drawn(blocks), branch=1),
    }[make]()  # fmt: skip
    mixed = drawn(3, 3, seed=4)
    inputs = EYE if "isotropic" in kind else EYE + mixed @ mixed.T
    data = rt.Moments(sxx=2 * inputs, syx=mixed, syy=40 * EYE, count=9)
    dense = rt.theory.zero_point(data, layout=layout).spectrum.eigenvalues
    monkeypatch.setattr("resid_theory.theory.zero_weights.counted_spectrum._DENSE", 0)
    point = rt.theory.zero_point(data, layout=layout)
    assert type(point.statistics).__name__ == "Semiseparable"
    return dense, point


@pytest.mark.parametrize("kind", ["isotropic", "general"])
@pytest.mark.parametrize("make", ["streams", "averaged", "scaled"])
def test_one_layer_blocks_on_streams_are_counted(kind, make, monkeypatch):
    dense, point = counted(kind, make, monkeypatch)
    scale = float(dense.abs().max())
    assert float((point.spectrum.eigenvalues - dense).abs().max()) <= HESSIAN * scale
    found = point.statistics
    assert found.largest == pytest.approx(dense[-1].item(), abs=1e-9 * scale)
    assert found.smallest == pytest.approx(dense[0].item(), abs=1e-9 * scale)
    assert found.eigenvalue(7) == pytest.approx(dense[7].item(), abs=1.5e-8 * scale)
    points = torch.cat([torch.linspace(-1.07, 1.13, 45) * scale, dense[::9] + 1e-7 * scale])
    assert found.counts_below(points).tolist() == [int((dense < t).sum()) for t in points]
    for place in (3, 20, 44):
        assert found.count_below(float(points[place])) == int((dense < points[place]).sum())
    assert point.index == int((dense < -found.zero_threshold).sum()) / len(dense)
    assert point.summary()["largest"] == found.largest and point.method == "inertia counts"


@pytest.mark.parametrize("kind", ["isotropic", "general"])
@pytest.mark.parametrize("wrong", [(0.9, 1.0), (1.0, 0.9)])
def test_ends_that_lanczos_missed_are_found_by_counting(kind, wrong, monkeypatch):
    dense, point = counted(kind, "streams", monkeypatch)
    again = replace(point.statistics)
    vars(again)["_ritz_values"] = (wrong[0] * dense[0].item(), wrong[1] * dense[-1].item())
    ends = (dense[0].item(), dense[-1].item())
    error = 1.5e-8 * float(dense.abs().max())
    assert (again.smallest, again.largest) == pytest.approx(ends, abs=error)


def test_round_off_does_not_grow_along_streams_that_grow(monkeypatch):
    monkeypatch.setattr("resid_theory.theory.zero_weights.counted_spectrum._DENSE", 0)
    mix = torch.eye(2) + 0.2 * drawn(100, 2, 2, seed=1)
    layout = Layout.hyper_connections(drawn(100, 2), mix, drawn(100, 2, seed=2), branch=1)
    found = rt.theory.zero_point([part[:, :2] for part in data()], layout=layout).statistics
    values = found.spectrum.eigenvalues
    top = values.abs().max()
    points = torch.cat([10.0**-k * torch.linspace(-1, 1, 10).double() * top for k in range(6)])
    points = points[(points[:, None] - values).abs().amin(1) > 3e-8 * top]
    assert len(points) > 40
    assert found.counts_below(points).tolist() == [int((values < t).sum()) for t in points]


def _scaled_point(scale, layout):
    return rt.theory.zero_point([scale * part[:, :2] for part in data()], layout=layout)


@pytest.mark.parametrize("power", [-400, 500])
def test_counts_scale_with_the_data_as_far_as_floats_reach(power, monkeypatch):
    """Squares of the Hessian's entries are out of their range."""
    layout = Layout.scaled(100, skip=0.5, branch=1)
    values = _scaled_point(1.0, layout).spectrum.eigenvalues
    monkeypatch.setattr("resid_theory.theory.zero_weights.counted_spectrum._DENSE", 0)
    found = _scaled_point(2.0**power, layout).statistics
    ends = (float(values[0]) * 4.0**power, float(values[-1]) * 4.0**power)
    assert (found.smallest, found.largest) == pytest.approx(ends, rel=1e-7)
    points = torch.tensor([-0.5, -1e-3, 1e-3, 0.5]).double() * values.abs().max()
    counts = [int((values < t).sum()) for t in points]
    assert found.counts_below(points * 4.0**power).tolist() == counts


def test_a_hessian_of_zeros_has_eigenvalues_of_zero(monkeypatch):
    layout = Layout.scaled(100, skip=0.5, branch=1)
    monkeypatch.setattr("resid_theory.theory.zero_weights.counted_spectrum._DENSE", 0)
    found = _scaled_point(0.0, layout).statistics
    assert (found.smallest, found.largest, found.rank, found.size) == (0.0, 0.0, 0, 400)


def test_eigenvalues_out_of_the_range_of_floats_are_refused_by_lanczos(monkeypatch):
    layout = Layout.scaled(100, skip=0.5, branch=1)
    monkeypatch.setattr("resid_theory.theory.zero_weights.counted_spectrum._DENSE", 0)
    found = _scaled_point(2.0**-500, layout).statistics
    with pytest.raises(ValueError, match="^layout, data: the eigenvalues are all zero or out of"):
        _ = found.largest


def test_what_lanczos_does_not_find_is_said(monkeypatch):
    def fails(*given, **options):
        raise ArpackNoConvergence("no convergence", [], [])

    monkeypatch.setattr("resid_theory.theory.zero_weights.counted_spectrum._DENSE", 0)
    monkeypatch.setattr("scipy.sparse.linalg.eigsh", fails)
    found = _scaled_point(1.0, Layout.averaged(9, branch=1)).statistics
    with pytest.raises(RuntimeError, match="^layout: Lanczos did not find both ends of the 36 eig"):
        _ = found.largest


def test_counts_where_pivots_of_streams_are_singular(monkeypatch):
    monkeypatch.setattr("resid_theory.theory.zero_weights.counted_spectrum._DENSE", 0)
    layout = Layout.hyper_connections(
        drawn(12, 2), torch.eye(2) + 0.1 * drawn(12, 2, 2), drawn(12, 2, seed=1), branch=1
    )
    found = rt.theory.zero_point(data(), layout=layout).statistics
    read, mix, write, alpha = (vars(found)[name] for name in ("read", "mix", "write", "alpha"))
    b = found.block_size
    matrix = torch.zeros(12, b, 12, b)
    for m in range(12):
        matrix[m, :, m] = alpha[m] ** 2 * found.own
        state = read[m]  # backwards from the block that reads
        for k in range(m - 1, -1, -1):
            link = (state @ write[k]) * found.pairing + alpha[m] * alpha[k] * found.own
            matrix[m, :, k], matrix[k, :, m], state = link, link.mT, state @ mix[k]
    matrix = matrix.reshape(12 * b, 12 * b)
    values = torch.linalg.eigvalsh(matrix)
    # The last blocks have such eigenvalues, and their elimination ends in a singular pivot.
    points = torch.cat([torch.linalg.eigvalsh(matrix[-n * b :, -n * b :]) for n in (1, 2, 6)])
    points = torch.cat([points, points + 1e-13, points - 1e-9])
    error = 1.5e-8 * values.abs().max()
    low, high = ((values < points[:, None] + off).sum(1) for off in (-error, error))
    counts = found.counts_below(points)
    assert bool(((low <= counts) & (counts <= high)).all())


def test_ends_and_index_take_one_pass_of_counts(monkeypatch):
    monkeypatch.setattr("resid_theory.theory.zero_weights.counted_spectrum._DENSE", 0)
    point, passes = rt.theory.zero_point(data(), layout=Layout.averaged(9, branch=1)), []
    count = Semiseparable.counts_below
    monkeypatch.setattr(
        Semiseparable, "counts_below",
        lambda matrix, points: passes.append(len(points)) or count(matrix, points),
    )  # fmt: skip
    found = point.summary()
    values = point.spectrum.eigenvalues
    assert passes == [3]
    assert found["index"] == int((values < -point.statistics.zero_threshold).sum()) / len(values)
    assert 0 < found["index"] < 1


@pytest.mark.parametrize("maps", [False, True], ids=["numbers", "maps"])
@pytest.mark.parametrize("seed", range(12))
def test_shortest_ways_are_those_of_all_chains(seed, maps):
    generator, count = torch.Generator().manual_seed(seed), 5
    table = (torch.rand(count + 1, count + 1, generator=generator) < 0.35).double().tril()
    if seed % 2:  # mostly a chain, whose ways are long
        few = table * (torch.rand(table.shape, generator=generator) < 0.3)
        table = torch.maximum(few, torch.eye(count + 1))
    table[:, 0] *= torch.rand(count + 1, generator=generator) < 0.5
    table[-1, 1:] *= torch.rand(count, generator=generator) < 0.5
    seen, goes_on = torch.rand(2, count, generator=generator) < 0.6
    wires = table[:count, :count], table[count]
    if maps:  # each has a map of zeros beside those that are missing, which give it its width
        every = [[EYE * v if v or j == k or k == count else None for j, v in enumerate(row)]
                 for k, row in enumerate(table.tolist())]  # fmt: skip
        wires = [row[: k + 1] for k, row in enumerate(every[:count])], every[count]
    layout = Layout(*wires, branch=2)
    for given in ((), (seen, lambda k: bool(goes_on[k]))):
        sees = seen if given else table[:count, 0]
        chains = [
            chain
            for size in range(1, count + 1)
            for chain in itertools.combinations(range(count), size)
            if sees[chain[0]] and table[count, chain[-1] + 1]
            and all(table[k, j + 1] and (not given or goes_on[k])
                    for j, k in zip(chain, chain[1:], strict=False))
        ]  # fmt: skip
        least = min(map(len, chains), default=math.inf)
        ends = {(chain[0], chain[-1]) for chain in chains if len(chain) == least > 1}
        found, ways = layout.path(*given)
        assert found == 2 * least and sorted(ways) == sorted(ends)


@pytest.mark.parametrize("wiring", ["streams", "shortcuts"])
def test_one_layer_blocks_behind_an_activation_are_counted(wiring, monkeypatch):
    read = drawn(5, 2) + (1 if wiring == "streams" else 0)
    streams = {"read": torch.cat([torch.ones(5, 1), 0 * read[:, :1]], 1), "write": read}
    layout = Layout.hyper_connections(mix=torch.eye(2).repeat(5, 1, 1), branch=1, **streams)
    layout = layout if wiring == "streams" else Layout.shortcut(5, branch=1)
    options = {"layout": layout, "pre": "tanh", "bias": True}
    dense = rt.theory.zero_point(data(), **options).spectrum.eigenvalues
    reads, out = layout.coefficients()
    net = LayoutNet(D, reads, out, branch=1, pre="tanh", bias=True)
    assert float((dense - measured(net, *data())).abs().max()) <= HESSIAN * float(dense.abs().max())
    monkeypatch.setattr("resid_theory.theory.zero_weights.counted_spectrum._DENSE", 0)
    found = rt.theory.zero_point(data(), **options).statistics
    points = torch.linspace(-1.07, 1.13, 21) * dense.abs().max()
    assert found.counts_below(points).tolist() == [int((dense < t).sum()) for t in points]


def test_biases_reach_the_output_of_a_plain_net():
    # Its last block sees a one: the gradient of its bias is the mean of g.
    one = rt.theory.zero_point(data(), layout=Layout.plain(3), bias=True)
    assert one.verdict == "not stationary" and float(one.gradient[-1][:, -1].abs().max()) > 0.1
    two = rt.theory.zero_point(data(), layout=Layout.plain(3, branch=2), bias=True)
    assert two.verdict == "strict saddle" and two.spectrum.smallest < -0.1
    assert rt.theory.zero_point(data(), layout=Layout.plain(3, branch=2)).order == 5


def test_streams_out_of_the_range_of_floats_are_refused_where_layers_meet(monkeypatch):
    monkeypatch.setattr("resid_theory.theory.zero_weights.counted_spectrum._DENSE", 0)
    mix = torch.diag_embed(torch.full((800, 1), 10.0)).double()
    mix[400:] = 0.1
    ones = torch.ones(800, 1).double()
    layout = Layout.hyper_connections(ones, mix, ones, branch=1)
    with pytest.raises(ValueError, match="^layout: what blocks read of the input .* out of the"):
        rt.theory.zero_point(data(), layout=layout)


def test_the_condition_number_is_free_of_depth_exactly_where_the_gains_are_equal():
    x, y = data()
    generator = torch.Generator().manual_seed(0)
    residual = rt.theory.zero_point((x, y), layout=Layout.shortcut(1)).condition_number
    for blocks in (1, 8, 64, 10_000):
        logits = torch.randn(blocks, 4, 4, generator=generator, dtype=torch.float64)
        mix = torch.zeros(blocks, 4, 4).double() + torch.eye(4)  # doubly stochastic: permutations
        mix = torch.gather(mix, 1, logits[:, :1].argsort(-1).mT.expand(-1, -1, 4))
        gates = torch.ones(blocks, 4, dtype=torch.float64)
        found = rt.theory.zero_point((x, y), layout=Layout.hyper_connections(gates / 4, mix, gates))
        assert found.condition_number == pytest.approx(residual, rel=1e-9)
        assert found.index == pytest.approx(0.5)
        free = Layout.hyper_connections(gates / 4, logits, gates)
        assert math.isfinite(free.spread) and (free.spread > 1 or blocks == 1)


@pytest.mark.parametrize("sign", [1, -1])
def test_gains_far_apart_are_told_from_zero(sign):
    layout = Layout.scaled(2, scale=[1.0 * sign, 1e-20 * sign])
    point = rt.theory.zero_point(data(), layout=layout)
    assert point.index == 0.5 and 1e20 <= point.condition_number < 1e23


def test_the_largest_gain_of_either_sign_sets_the_escape():
    one, three = (
        rt.theory.zero_point(data(), layout=Layout.scaled(2, scale=scale))
        for scale in ([0.5, 1.0], [-3.0, 1.0])
    )
    assert (one.gain, three.gain) == pytest.approx((1.0, 3.0), rel=1e-14)
    assert one.escape_time == pytest.approx(3 * three.escape_time, rel=1e-14)


@pytest.mark.parametrize(("count", "factor"), [(2000, 10.0), (20, 1e100), (20, 1e-100)])
def test_gains_beyond_the_range_of_floats_are_carried_as_logarithms(count, factor):
    mix = factor * torch.eye(2, dtype=torch.float64).expand(count, 2, 2)
    ones = torch.ones(count, 2, dtype=torch.float64)
    layout = Layout.hyper_connections(ones, mix, ones)
    # Each block is read behind k and written in front of count - 1 - k mixings.
    exact = torch.full((count,), (count - 1) * math.log(factor) + math.log(2)).double()
    assert torch.allclose(layout.log_gain, exact)
    assert layout.spread == pytest.approx(1, rel=1e-9)
    assert Layout.plain(2).spread == Layout.scaled(2, scale=[1.0, 0.0]).spread == math.inf


@pytest.mark.parametrize("skip", [0.1, 10.0])
def test_eigenvalues_beyond_the_range_of_floats_are_refused(skip):
    with pytest.raises(ValueError, match="^layout: a_0 is .* e\\^-?919"):
        rt.theory.zero_point(data(), layout=Layout.scaled(400, skip=skip))


@pytest.mark.parametrize("branch", [1, 2])
@pytest.mark.parametrize(
    ("log", "direct", "fits"),
    [(599.5, 0, True), (601, 0, False), (-599, 0, True), (-601, 0, False), (300, 299, True),
     (300, 301, False), (-300, 500, True), (-math.inf, 0, True)],
)  # fmt: skip
def test_the_range_of_eigenvalues(branch, log, direct, fits):
    layout = Layout([[math.exp(log / 2)]], [-math.exp(direct), -math.exp(log / 2)], branch)
    if fits:
        layout.check_range()
        return
    says = f"^layout: a_0 is -.* are e.{log} to e.{log}; eigenvalues .* need e.-600 to e.600$"
    with pytest.raises(ValueError, match=says):
        layout.check_range()


def test_three_layers_have_eigenvalues_of_zero_in_any_range():
    Layout.scaled(400, skip=0.1, branch=3).check_range()
    with pytest.raises(ValueError, match="^layout: a_0 is inf and the p_k q_k are of no account;"):
        Layout.scaled(400, skip=10.0, branch=3).check_range()
    with pytest.raises(ValueError, match="are e.-461 to e.691;"):
        Layout([[1e300, 0.0], [1e-200, 0.0]], [1.0, 1.0, 1.0], branch=2).check_range()


@pytest.mark.parametrize(
    ("layout", "said"),
    [
        (Layout.plain(3), "Layout('plain', blocks=3, branch=1)"),
        (Layout.shortcut(3), "Layout('shortcut', blocks=3, branch=2)"),
        (Layout.scaled(3), "Layout('scaled', blocks=3, branch=2)"),
        (Layout.averaged(3), "Layout('averaged', blocks=3, branch=2)"),
        (Layout.dense(torch.eye(4)), "Layout('dense', blocks=3, branch=2)"),
        (Layout([[1.0]], [1.0, 1.0]), "Layout('layout', blocks=1, branch=1)"),
        (Layout([[1.0]], [1.0, 1.0], 3, "mine"), "Layout('mine', blocks=1, branch=3)"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_layouts_say_their_names(layout, said):
    assert repr(layout) == said and f"'{layout.name}'" in said


@pytest.mark.parametrize("make", [
    lambda w: Layout(w, torch.cat([w[0, :1], w[2]])), lambda w: Layout.scaled(3, skip=w[2]),
    Layout.dense,
    lambda w: Layout.hyper_connections(w, w.expand(3, 3, 3), w, start=w[0], readout=w[1]),
])  # fmt: skip
def test_layouts_hold_doubled_copies_of_their_numbers_without_their_graph(make):
    numbers = torch.ones(3, 3).double().tril()
    layouts = [make(numbers.float().requires_grad_()), make(numbers)]
    numbers.zero_()
    own, later = ((*layout.coefficients(), layout.products) for layout in layouts)
    for part, other in zip(own, later, strict=True):
        assert part.dtype == torch.float64 and not part.requires_grad
        assert torch.equal(part, other)
    assert type(layouts[0].direct) is float


def test_maps_of_a_layout_do_not_follow_those_that_were_given():
    given = torch.ones(2, 2).double()
    layout = Layout([[given]], [given, given.T])
    given.zero_()
    reads, out = layout.maps
    assert all(bool((part == 1).all()) for part in (*reads[0], *out, layout.direct))


def test_maps_of_single_precision_are_taken_in_double():
    A, a, *_ = random_maps(3)
    single = [[None if part is None else part.float() for part in row] for row in (*A, a)]
    layout = Layout(single[:-1], single[-1])
    rows, last = layout.maps
    types = {part.dtype for row in (*rows, last) for part in row if part is not None}
    assert types == {layout.direct.dtype} == {torch.float64}


@pytest.mark.parametrize("maps", [False, True])
def test_nets_hold_no_graph_of_their_coefficients(maps):
    w = torch.ones(1, 1, requires_grad=True)
    net = LayoutNet(1, [[w]] if maps else w, [w, w] if maps else w[0].expand(2), branch=2)
    assert not any(part.requires_grad for part in net.buffers())


def test_streams_of_single_precision_are_read_in_double():
    """By 3 and by a third, which float32 has to eight digits."""
    table = torch.tensor([[1.0, 0, 0], [3, 6, 0], [1, 2, 5]], dtype=torch.float32)
    net = LayoutNet(D, table[:2, :2], table[2], branch=1, norm=lambda _: nn.Identity(),
                    norm_at="stream")  # fmt: skip
    torch.testing.assert_close(net(data()[0]), data()[0], rtol=1e-15, atol=0)


@pytest.mark.parametrize("branch", [1, 2])
def test_norms_are_differentiated_in_inference_mode(branch):
    options = {"norm": torch.tanh, "layout": Layout.scaled(2, branch=branch)}
    expected = rt.theory.zero_point(data(), **options).spectrum.levels
    with torch.inference_mode():
        assert torch.equal(rt.theory.zero_point(data(), **options).spectrum.levels, expected)


def test_tables_of_many_blocks_are_refused(monkeypatch):
    monkeypatch.setattr("resid_theory.theory.zero_weights.layout._MOST", 3)
    assert torch.equal(Layout.plain(3).coefficients()[0], torch.eye(3).double())
    with pytest.raises(ValueError, match="^layout: 4 blocks have no table, needs at most 3$"):
        Layout.plain(4).coefficients()


def test_streams_that_are_all_one_are_no_shortcuts_unless_there_is_one():
    ones = torch.ones(2, 2)
    assert not Layout.hyper_connections(ones, torch.ones(2, 2, 2), ones, readout="sum").is_shortcut
    one = Layout.hyper_connections(ones[:, :1], ones[:, :1, None], ones[:, :1])
    assert one.is_shortcut and not Layout.scaled(2, skip=[1.0, 2.0]).is_shortcut
    assert not Layout(torch.eye(2), torch.ones(3)).is_shortcut


def test_streams_that_end_leave_nothing():
    mix = torch.eye(2).repeat(20, 1, 1)
    mix[9] = 0.0  # in the middle of many mixings
    layout = Layout.hyper_connections(torch.ones(20, 2), mix, torch.ones(20, 2))
    reads, out = layout.coefficients()
    assert torch.equal(layout.products, reads[:, 0] * out[1:]) and layout.direct == 0.0
    assert layout.spread == math.inf and layout.products.nonzero().tolist() == [[9]]


PAIR = torch.eye(2)


def streams(read=(2, 3), mix=(2, 3, 3), write=(2, 3), **options):
    return Layout.hyper_connections(*map(torch.ones, (read, mix, write)), **options)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Layout(torch.ones(2, 2), torch.ones(3)), "A: block 1 reads block 1"),
        (lambda: Layout(torch.ones(2, 3), torch.ones(3)), r"A: got shape \(2, 3\)"),
        (lambda: Layout(torch.eye(2), torch.ones(2)), r"a: got shape \(2,\)"),
        (lambda: Layout(torch.eye(2) * math.nan, torch.ones(3)), "A: entry"),
        (lambda: Layout(torch.eye(2), torch.ones(3), branch=0), "branch: got 0"),
        (lambda: Layout.scaled(3, skip=[1.0, 2.0]), r"skip: got shape \(2,\)"),
        (lambda: Layout.dense(EYE + EYE.roll(1, 1).triu()), "weights: reads later blocks"),
        (lambda: Layout.dense(torch.ones(2, 3)), r"weights: got shape \(2, 3\), needs \(K"),
        (lambda: Layout.dense(torch.ones(1, 1)), r"weights: got shape \(1, 1\), needs \(K"),
        (lambda: Layout.dense(torch.ones(2)), r"weights: got shape \(2,\), needs \(K"),
        (lambda: streams(mix=(2, 2, 2)), "mix: got shapes"),
        (lambda: streams(readout="last"), "readout: got 'last'"),
        (
            lambda: streams((2,), (2, 2), (2,)),
            r"mix: got shapes \(2,\), \(2, 2\) and \(2,\) of read",
        ),
        (lambda: streams(write=(1, 3)), r"mix: got shapes .* and \(1, 3\) of read, mix and write"),
        (lambda: streams(start=torch.ones(2)), r"start: got shape \(2,\), needs \(3,\)"),
        (lambda: streams(readout=torch.tensor(1.0)), r"readout: got shape \(\), needs \(3,\)"),
        (lambda: streams(start=1.0), r"start: got shape \(\), needs \(3,\)"),
        (lambda: Layout.scaled(3, scale=torch.ones(3, 1)), r"scale: .* needs one or \(3,\)"),
        (
            lambda: Layout.shortcut(4097).coefficients(),
            "layout: 4097 blocks have no table, needs at",
        ),
        (
            lambda: rt.theory.zero_point(data(), layout=Layout.shortcut(2), blocks=2),
            "layout: has blocks",
        ),
        (lambda: rt.theory.zero_point(data(), layout="shortcut"), "layout: got str"),
        (
            lambda: LayoutNet(2, torch.ones(2, 2), torch.ones(3), branch=2),
            "A: block 1 reads block 1",
        ),
        (
            lambda: Layout([[EYE], [EYE, 0 * EYE, 0 * EYE, EYE], [EYE]], [EYE] * 4),
            "^A: block 2 reads block 3, which is not before it; needs None there$",
        ),
        (
            lambda: Layout(torch.tensor([[1, 0, 2.0], [0, 1, 3.0], [0, 0, 1]]), torch.ones(4)),
            "^A: block 1 reads block 2, which is not before it; needs zeros above the diagonal$",
        ),
        (lambda: Layout([[EYE], [EYE]], [EYE, EYE, None]), "maps from block 2: got widths"),
        (lambda: Layout([[EYE]], [EYE[:2], EYE]), r"a: got widths \[2, 3\]"),
        (lambda: Layout([[EYE]], [EYE]), "a: got 1 maps"),
        (lambda: Layout([[EYE * math.inf]], [EYE, EYE]), r"A\[0\]\[0\]: entry"),
        (lambda: Layout([[EYE]], [EYE, EYE]).products, "layout: has matrices"),
        (lambda: Layout([[EYE]], [EYE, EYE]).coefficients(), "layout: has .* they are in maps"),
        (
            lambda: rt.theory.zero_point(data(), layout=Layout([[EYE[:, :2]]], [EYE[:, :2], EYE])),
            "data x: has 3 inputs, the layout reads 2",
        ),
        (lambda: point_of(norm=nn.LayerNorm(D), norm_at="behind"), "norm_at: unknown name"),
        (lambda: point_of(norm=[torch.tanh] * 3), "norm: got 3, needs one callable, or one for"),
        (lambda: point_of(norm=nn.BatchNorm1d(D)), "norm: normalizes over samples"),
        (
            lambda: point_of(norm=[nn.BatchNorm1d(D), nn.LayerNorm(D)]),
            "norm: normalizes over samples",
        ),
        (lambda: point_of(norm=lambda u: u - u.mean(0)), "norm: a sample's result depends"),
        (lambda: point_of(norm="layer"), "norm: got 'layer', needs a callable"),
        (lambda: point_of(norm=3), "norm: got 3, needs a callable, or one for each block"),
        (lambda: point_of(norm=[torch.tanh, 3]), "norm: got 2, needs one callable, or one for"),
        (lambda: point_of(norm=nn.Sequential(nn.BatchNorm1d(D))), "norm: normalizes over samples"),
        (lambda: point_of(norm=lambda u: (u,)), r"norm: turns shape \(9, 3\) into tuple, needs"),
        (
            lambda: point_of(norm=nn.LayerNorm(D), norm_at="stream", layout=one_layer()),
            "norm_at: got 'stream', for blocks of one layer needs 'branch'",
        ),
        (
            lambda: point_of(norm=torch.tanh, norm_at="write", last_bias=True),
            "last_bias: needs norm_at='branch' and a post without curvature",
        ),
        (
            lambda: point_of(norm=torch.tanh, norm_at="stream", last_bias=True),
            "last_bias: needs norm_at='branch' and a post without curvature",
        ),
        (
            lambda: point_of(Layout.shortcut(2), kink="mean", norm=torch.tanh),
            "kink: other rules than 'line' need blocks, without layout and norm",
        ),
        (
            lambda: point_of(norm=[nn.LayerNorm(3), nn.LayerNorm(2)]),
            r"norm: fails on rows of shape \(9, 3\) in block 2: ",
        ),
        (lambda: point_of(norm=lambda u: u / 0), r"norm\(x\): entry"),
        (lambda: point_of(norm=lambda u: u[:, :2]), r"norm: turns shape \(9, 3\) into \(9, 2\)"),
        (lambda: point_of(norm=nn.LayerNorm(D, bias=False, eps=0), norm_at="write"), "norm"),
        (
            lambda: point_of(
                norm=nn.LayerNorm(D), norm_at="stream", layout=Layout.dense(drawn(3, 3).tril())
            ),
            "layout: a normalized stream needs the coefficients of one stream",
        ),
        (
            lambda: point_of(norm=nn.LayerNorm(D), norm_at="write", layout=one_layer()),
            "norm_at: got 'write', for blocks of one layer",
        ),
        (lambda: point_of(last_bias=True, layout=one_layer()), "last_bias: a block of one layer"),
        (lambda: point_of(last_bias=True, post="elu"), "last_bias: needs norm_at='branch'"),
        (lambda: point_of(mid="sigmoid"), "mid: the activation is 0.5 at zero"),
        (lambda: point_of(kink="mean"), "kink: other rules than 'line'"),
        (lambda: layout_of(nn.Linear(2, 2)), "net: got Linear"),
        (
            lambda: LayoutNet(2, [[PAIR]], [PAIR] * 2, branch=2, norm=torch.tanh, norm_at="stream"),
            "norm_at: a normalized stream needs numbers as coefficients",
        ),
        (
            lambda: LayoutNet(3, [[PAIR]], [PAIR] * 2, branch=2),
            "width: got 3, the maps read 2 inputs",
        ),
        (
            lambda: LayoutNet(2, torch.eye(1), torch.ones(2), branch=1, hidden=3),
            "hidden: got 3 with branch=1, needs branch >= 2",
        ),
        (
            lambda: LayoutNet(2, [[torch.ones(2, 2, 2)]], [PAIR] * 2, branch=2),
            r"A\[0\]\[0\]: got shape \(2, 2, 2\), needs a matrix",
        ),
    ],
)
def test_wrong_calls(make, words):
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize("seed", range(6))  # zeros that rounding makes negative in some
def test_last_biases_that_shift_the_output_alike_have_zeros_and_no_nan(seed):
    x, y = data(seed)
    alike = torch.outer(drawn(D, seed=seed + 7), drawn(D, seed=seed + 8))
    layout = Layout([[torch.eye(D)]], [torch.eye(D), alike], 2)
    values = rt.theory.zero_point((x, y), layout=layout, last_bias=True).spectrum.eigenvalues
    weights = [torch.zeros(D, D).double().requires_grad_() for _ in range(2)]
    bias = torch.zeros(D).double().requires_grad_()
    output = x + (x @ weights[0].mT @ weights[1].mT + bias) @ alike.mT
    value = oracles.square_loss(output, y)
    exact = torch.linalg.eigvalsh(oracles.hessian_by_nested_gradients(value, [*weights, bias]))
    assert float((values - exact).abs().max()) <= HESSIAN * float(exact.abs().max())


def test_last_biases_of_narrow_blocks_under_a_loss_that_curves_down():
    wires = [[EYE]], [EYE, drawn(D, 1, seed=9)]
    net, (x, y) = LayoutNet(D, *wires, branch=2, last_bias=True), data()
    values = torch.linalg.eigvalsh(oracles.hessian_by_nested_gradients(
        -oracles.square_loss(net(x), y), list(net.parameters())
    ))  # fmt: skip
    point = rt.theory.zero_point(
        (x, y), layout=Layout(*wires, branch=2), last_bias=True,
        loss=lambda output, target: -0.5 * (output - target).square().sum(1).mean(),
    )  # fmt: skip
    assert float((point.spectrum.eigenvalues - values).abs().max()) <= HESSIAN * values.abs().max()
    assert float((point.shift - (y - x).mean(0)).abs().max()) <= 1e-14


def test_hidden_width_is_that_of_the_input_and_a_class_is_no_norm():
    draws = torch.Generator().manual_seed(0)
    A, a = [[torch.randn(4, 3, generator=draws)]], [None, torch.randn(2, 5, generator=draws)]
    data = torch.randn(9, 3, generator=draws), torch.randn(9, 2, generator=draws)
    point = rt.theory.zero_point(data, layout=Layout(A, a, branch=2))
    assert point.hidden == LayoutNet(3, A, a, branch=2).hidden == 3
    assert point.spectrum.size == 3 * (4 + 5)
    with pytest.raises(ValueError, match="norm: got the class LayerNorm"):
        rt.theory.zero_point(data, layout=Layout(A, a, branch=2), norm=torch.nn.LayerNorm)


CHAIN = [[EYE, None], [None, EYE]], [None, None, EYE]
HALVES = (
    torch.diag(torch.tensor([1.0, 0, 0]).double()),
    torch.diag(torch.tensor([0, 1.0, 1]).double()),
)


@pytest.mark.parametrize(
    "options",
    [{}, {"pre": "tanh"}, {"norm": nn.LayerNorm(D).double()}],
    ids=["linear", "pre", "norm"],
)
@pytest.mark.parametrize("wires", [CHAIN, Layout.plain(2).coefficients()], ids=["maps", "numbers"])
def test_blocks_that_reach_the_output_only_together_make_a_saddle(wires, options):
    # The gradient of no block tells of it: W2 W1 x of a plain net has order 2, of n = 2 order 4.
    one = rt.theory.zero_point(data(), layout=Layout(*wires), **options)
    assert (one.verdict, one.order) == ("strict saddle", 1) and one.spectrum.smallest < -0.1
    assert one.reason == "half of the nonzero eigenvalues are negative"
    two = rt.theory.zero_point(data(), layout=Layout(*wires, branch=2), **options)
    assert (two.verdict, two.order) == ("degenerate saddle", 3)
    assert two.escape_time == math.inf  # its plateau is another than that of one block
    if "norm" in options:  # linear at zero in a ball of sqrt(eps) only
        return
    (x, y), net = data(), LayoutNet(D, *wires, branch=2, **options)
    falls = []
    for sign in (0.01, 0.02, -0.02):
        with torch.no_grad():
            for k, weight in enumerate(net.weights):
                weight.copy_((sign if k == 0 else abs(sign)) * drawn(D, D, seed=k + 5))
            falls.append(float(oracles.square_loss(net(x), y) - oracles.square_loss(0 * x, y)))
    assert falls[1] / falls[0] == pytest.approx(16, rel=0.05) and falls[2] * falls[1] < 0


def test_blocks_without_slope_at_zero_pass_nothing_on():
    layout = Layout(*CHAIN)
    flat = rt.theory.zero_point(data(), layout=layout, pre=torch.square)
    assert (flat.verdict, flat.order) == ("degenerate", math.inf) and not flat.spectrum.smallest
    assert flat.reason == "no way leads from the input through weights to the output"
    nothing = point_of(norm=torch.zeros_like, norm_at="write")
    assert nothing.verdict == "degenerate" and nothing.reason.startswith("M = 0")


def test_layers_without_gradients_fall_in_pairs():
    # The gradient at the output is along the first axis, of samples along the others: each block
    # alone sees nothing of it.
    first, rest = HALVES
    x = torch.cat([EYE, -EYE])
    y = x + F.pad(x[:, 1:2], (0, D - 1))
    wires = [[rest, None], [first, EYE]], [EYE, rest, first]
    values = measured(LayoutNet(D, *wires, branch=1), x, y)
    point = rt.theory.zero_point((x, y), layout=Layout(*wires))
    assert not any(bool(b.any()) for b in point.gradient) and values[0] < -0.1
    assert point.verdict == "strict saddle" and point.order == 1
    assert point.reason.startswith("no block has a gradient, but the Hessian has negative")
    assert float((point.spectrum.eigenvalues - values).abs().max()) <= HESSIAN


@pytest.mark.parametrize(
    ("out", "post", "reason"),
    [([1.0, 0.0], None, "no way leads from"), ([1.0, 1.0], lambda z: z**3, "c_n = 0: an")],
    ids=["unread", "flat"],
)
def test_last_biases_that_move_nothing_leave_zero_stationary(out, post, reason):
    (x, y), options = data(), {"last_bias": True, "post": post}
    y[:, 0] = x[:, 0]  # the mean of g is zero in some outputs
    point = rt.theory.zero_point((x, y), layout=Layout([[1.0]], out, branch=2), **options)
    assert point.verdict == "degenerate" and point.order > 0 and point.reason.startswith(reason)


def test_last_biases_that_move_some_outputs_have_a_gradient():
    (x, y), layout = data(), Layout([[EYE]], [EYE, HALVES[0]], branch=2)
    point = rt.theory.zero_point((x, y), layout=layout, last_bias=True)
    assert point.verdict == "not stationary"
    assert float((point.shift - (x - y).mean(0)).abs().max()) <= 1e-14


@pytest.mark.parametrize("at", ["branch", "stream", "write"])
def test_predictions_hold_no_graph_of_a_norm(at):
    gain = drawn(D).requires_grad_()
    point = point_of(norm=lambda u: gain * u / (1 + u.square().sum(-1, keepdim=True)), norm_at=at)
    assert not point.correlation.requires_grad and math.isfinite(point.spectrum.largest)


@pytest.mark.parametrize(("others", "fits"), [(0.9, True), (1.1, False)])
@pytest.mark.parametrize("scale", [1.0, 1e-12], ids=["relative", "absolute"])
def test_rows_are_their_own_but_for_round_off(others, fits, scale):
    x, y = torch.tensor([[1.0], [2.0]]).double(), torch.ones(2, 1).double()
    off = 1e-9 if scale == 1 else 1.0  # of 1e-9 of a row, or of 1e-12 + 1e-21

    def norm(u):
        """Each row, and to the first one a share of what the second one is."""
        return scale * (off * others * (u[1:].sum() != 0) + (u if scale == 1 else 0 * u))

    layout = Layout.shortcut(1)
    if fits:
        rt.theory.zero_point((x, y), layout=layout, norm=norm)
        return
    with pytest.raises(ValueError, match="^norm: a sample's result depends on other samples"):
        rt.theory.zero_point((x, y), layout=layout, norm=norm)


@pytest.mark.parametrize(("value", "fits"), [(1e-12, True), (1.1e-12, False), (-1.1e-12, False)])
def test_what_is_zero_at_zero_but_for_round_off(value, fits):
    norm = lambda u: u + value * EYE[0]  # noqa: E731
    if fits:
        assert point_of(norm=norm, norm_at="write").verdict == "strict saddle"
        return
    with pytest.raises(ValueError, match="^norm: is not 0 at zero, needs norm_at='write' without"):
        point_of(norm=norm, norm_at="write")


def test_a_norm_is_read_in_double_precision_and_left_as_it_is():
    norm, fixed = nn.LayerNorm(D), nn.BatchNorm1d(D).eval()
    nn.init.uniform_(norm.weight)
    wide = nn.LayerNorm(D).double()
    wide.load_state_dict(norm.state_dict())
    found, exact = (point_of(norm=one).correlation for one in (norm, wide))
    assert torch.equal(found, exact)
    assert norm.weight.dtype == torch.float32 and norm.weight.requires_grad
    assert point_of(norm=fixed).verdict == "strict saddle"


def test_blocks_behind_one_norm_have_a_common_matrix():
    norm, layout = nn.LayerNorm(D).double(), Layout.shortcut(3)
    one, each = (point_of(layout, norm=given) for given in (norm, [norm] * 3))
    assert one.blocks_of_m is None and len(each.blocks_of_m) == 3
    assert torch.equal(one.correlation, each.correlation)


def test_last_biases_with_a_gradient_are_named():
    point = point_of(last_bias=True)
    assert point.verdict == "not stationary" and point.order == 0
    assert point.reason == "the last biases have a gradient, the mean of g"


def test_one_input_with_a_bias():
    x, y = (part[:, :1] for part in data())
    wires = [[1.0, 0.0], [1.0, 1.0]], [1.0, 1.0, 1.0]
    net = LayoutNet(1, *wires, branch=1, bias=True, pre="tanh")
    point = rt.theory.zero_point((x, y), layout=Layout(*wires), bias=True, pre="tanh")
    values = measured(net, x, y)
    assert float((point.spectrum.eigenvalues - values).abs().max()) <= HESSIAN * values.abs().max()


def test_streams_of_whole_numbers_are_exact_at_any_depth():
    # h'' = F(h) in leaps, h <- 2 h - h' + F(h): what the output reads of a block falls by one.
    count = 10_000
    mix = torch.tensor([[2.0, -1.0], [1.0, 0.0]]).double().expand(count, 2, 2)
    first = torch.tensor([[1.0, 0.0]]).double().expand(count, 2)
    layout = Layout.hyper_connections(first, mix, first, readout=[1.0, 0.0])
    exact = torch.arange(count, 0, -1, dtype=torch.float64)
    # Logarithms of up to 10 are rounded to 10 EPS, and so are the numbers they stand for.
    assert float((layout.products / exact - 1).abs().max()) <= 20 * EPS


@pytest.mark.parametrize("table", [None, 1.0, [None], [1.0], torch.ones(())])
def test_tables_without_rows_are_refused(table):
    with pytest.raises(ValueError, match="^A: got .* needs a row of maps for each block"):
        Layout(table, [EYE, EYE])


def test_no_streams_are_refused():
    with pytest.raises(ValueError, match="^mix: .* with K and n of at least 1"):
        streams((2, 0), (2, 0, 0), (2, 0))


def test_an_output_and_shares_that_are_too_large_together_are_refused():
    wires = [[1e100, 0.0], [1e100, 0.0]], [1e180, 1e100, 1e100]
    with pytest.raises(ValueError, match="^layout: a_0 is 1e.180 and the p_k q_k are e.461 to"):
        rt.theory.zero_point(data(), layout=Layout(*wires, branch=2))


@pytest.mark.parametrize("branch", [1, 2])
def test_m_of_a_way_through_two_blocks_is_that_of_its_ends(branch):
    first, middle, last = drawn(2, D), drawn(5, 4, seed=1), drawn(3, 6, seed=2)
    layout = Layout([[first], [None, middle]], [None, None, last], branch)
    x, y = data(3)
    point = rt.theory.zero_point((x, y), layout=layout)
    # The first block reads x, the second one writes the output, which is 0 at zero weights.
    exact = (-y @ last).T @ (x @ first.T) / SAMPLES
    torch.testing.assert_close(point.correlation, exact, rtol=1e-13, atol=1e-14)
    assert point.path == 2 * branch and not point.gains.any()


@pytest.mark.parametrize("first", [0, 1])
def test_of_several_matrices_the_one_that_escapes_first_is_shown(first):
    # Of mean g x^T = 1 a block that reads P x and writes the output has the matrix P^T.
    x = math.sqrt(D) * torch.cat([EYE, -EYE])
    turn = torch.linalg.qr(drawn(D, D)).Q
    several = [torch.diag(torch.tensor([2.0, 0, 0]).double()), 1.9 * turn]  # of a larger norm
    assert float(several[1].abs().sum(0).max()) > 2
    one, other = several[first], several[1 - first]
    layout = Layout([[one], [other, None]], [None, EYE, EYE], branch=2)
    point = rt.theory.zero_point((x, -x), layout=layout)
    torch.testing.assert_close(point.correlation, several[0].T, rtol=1e-14, atol=1e-14)
    assert point.escape_time == pytest.approx(math.log(10) / 2)
