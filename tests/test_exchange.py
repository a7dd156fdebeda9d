"""The DiracNet authors' files: the same function, the same bits, and nothing hostile gets in."""

import io
import os
import pickle
import struct
import zipfile

import oracles
import pytest
import tolerances
import torch

import resid_theory as rt

FLOAT32 = 1e-6
"""What float32 promises over a whole net: 8 roundings, of outputs relative to the largest."""


def relative_error(measured, exact):
    return tolerances.relative_error(measured.detach(), exact.detach())


def saved(path, content, **options):
    torch.save(content, path, **options)
    return path


def split(params):
    """As in older files: statistics and identities apart."""
    apart = {k: v for k, v in params.items() if ".running_" in k or k.startswith("eye")}
    return {"params": {k: v for k, v in params.items() if k not in apart}, "stats": apart}


def folded(params):
    """The folded layout, by arithmetic on the dict."""
    out = {"fc.weight": params["fc.weight"], "fc.bias": params["fc.bias"]}
    for name in [k for k in params if k.endswith("conv")]:
        base, weight = name.removesuffix("conv"), params[name]
        if base:
            a, b = (params[f"{base}{part}"][:, None, None, None] for part in ("alpha", "beta"))
            eye = params["eye" + "_".join(map(str, weight.shape))]
            weight = a * eye + b * weight / weight.flatten(1).norm(dim=1)[:, None, None, None]
        scale, shift, mean, variance = (
            params[f"{base}bn.{part}"] for part in ("weight", "bias", "running_mean", "running_var")
        )
        scale = scale / (variance + 1e-5).sqrt()
        out[f"features.{name}.weight"] = scale[:, None, None, None] * weight
        out[f"features.{name}.bias"] = shift - mean * scale
    return out


def equal(tensors, others):
    assert tensors.keys() == others.keys()
    return all(torch.equal(tensors[name], others[name]) for name in tensors)


CIFAR = [
    pytest.param((2 * n,) * 3, 6 * n + 4, id=str(6 * n + 4)) for n in (1, 2, 3, 4, 5, 6, 8, 16)
]
IMAGENET = [pytest.param((4, 4, 4, 4), 18, id="18"), pytest.param((6, 8, 12, 6), 34, id="34")]


# -- one function ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("layers", "depth"), CIFAR)
def test_cifar_nets_are_the_authors_function(tmp_path, generator, layers, depth):
    params = oracles.dirac_params(layers, generator=generator, dtype=torch.float32)
    net = rt.load_dirac_file(saved(tmp_path / "model.pt7", {"params": params}))
    x = torch.randn(2, 3, 16, 16, generator=generator, dtype=torch.float32)
    assert net.architecture["arguments"]["depth"] == depth
    assert relative_error(net(x), oracles.dirac_function(x, params)) < FLOAT32


@pytest.mark.parametrize(("layers", "depth"), IMAGENET)
def test_imagenet_nets_are_the_authors_function(tmp_path, generator, layers, depth):
    params = oracles.dirac_params(
        layers, classes=7, imagenet=True, generator=generator, dtype=torch.float32
    )
    net = rt.load_dirac_file(saved(tmp_path / "model.pt7", {"params": params}))
    x = torch.randn(1, 3, 64, 64, generator=generator, dtype=torch.float32)
    assert net.architecture["builder"] == "diracnet_imagenet"
    assert (net.architecture["arguments"]["depth"], net(x).shape) == (depth, (1, 7))
    assert relative_error(net(x), oracles.dirac_function(x, params)) < FLOAT32


@pytest.mark.parametrize("imagenet", [False, True], ids=["cifar", "imagenet"])
def test_folded_nets_are_the_authors_function(tmp_path, generator, imagenet):
    layers = (4, 4, 4, 4) if imagenet else (4, 4, 4)
    params = oracles.dirac_params(
        layers, imagenet=imagenet, generator=generator, dtype=torch.float32
    )
    tensors = folded(params)
    net = rt.load_dirac_file(saved(tmp_path / "folded.pth", tensors))
    side = 64 if imagenet else 16
    x = torch.randn(1, 3, side, side, generator=generator, dtype=torch.float32)
    assert relative_error(net(x), oracles.folded_dirac_function(x, tensors)) < FLOAT32
    # One more rounding of every weight than between equal weights.
    assert relative_error(net(x), oracles.dirac_function(x, params)) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("width", [1, 2])
def test_the_form_follows_from_the_shapes(tmp_path, generator, width, dtype):
    params = oracles.dirac_params(
        (4, 4, 4), width=width, classes=100, generator=generator, dtype=dtype
    )
    net = rt.load_dirac_file(saved(tmp_path / "model.pt7", {"params": params, "epoch": 3}))
    wanted = {"depth": 16, "width": width, "classes": 100, "identity": "dirac", "normalize": True}
    assert net.architecture["arguments"].items() >= wanted.items()
    assert {p.dtype for p in net.parameters()} == {dtype}
    assert not any(module.training for module in net.modules())


# -- the same bits ---------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["params", "stats", "folded"])
@pytest.mark.parametrize("imagenet", [False, True], ids=["cifar", "imagenet"])
def test_import_export_import_is_bit_identical(tmp_path, generator, layout, imagenet):
    layers = (4, 4, 4, 4) if imagenet else (2, 2, 2)
    params = oracles.dirac_params(
        layers, classes=3, imagenet=imagenet, generator=generator, dtype=torch.float32
    )
    forms = {"params": lambda: {"params": params}, "stats": lambda: split(params)}
    content = forms.get(layout, lambda: folded(params))()
    net = rt.load_dirac_file(saved(tmp_path / "a.pth", content))
    rt.save_dirac_file(tmp_path / "b.pth", net, layout=layout)
    written = torch.load(tmp_path / "b.pth", weights_only=True)
    if layout == "folded":
        assert equal(written, content)
    else:
        assert written.keys() == content.keys()
        assert all(equal(written[part], content[part]) for part in content)
    again = rt.load_dirac_file(tmp_path / "b.pth")
    assert equal(again.state_dict(), net.state_dict())


def test_the_format_of_older_torch_is_read(tmp_path, generator):
    params = oracles.dirac_params((2, 2, 2), generator=generator)
    new = saved(tmp_path / "new", {"params": params})
    old = saved(tmp_path / "old", {"params": params}, _use_new_zipfile_serialization=False)
    assert old.read_bytes()[:2] != b"PK"
    nets = [rt.load_dirac_file(path) for path in (new, old)]
    assert equal(*(net.state_dict() for net in nets))


def test_identities_and_their_absence_make_no_difference(tmp_path, generator):
    params = oracles.dirac_params((2, 2, 2), generator=generator)
    without = {name: t for name, t in params.items() if not name.startswith("eye")}
    nets = [
        rt.load_dirac_file(saved(tmp_path / "model", {"params": content}))
        for content in (params, without)
    ]
    assert equal(*(net.state_dict() for net in nets))


def test_a_folded_net_exports_from_its_own_fold(tmp_path):
    net = rt.diracnet(10, width=2, classes=4).eval()
    rt.save_dirac_file(tmp_path / "a.pth", rt.fold(net))
    again = rt.load_dirac_file(tmp_path / "a.pth")
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(again(x), rt.fold(net)(x))


def test_a_trained_file_keeps_what_else_training_wrote(tmp_path, generator):
    params = oracles.dirac_params((2, 2, 2), generator=generator)
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], 0.1, momentum=0.9)
    weight.sum().backward()
    optimizer.step()
    content = {"params": params, "optimizer": optimizer.state_dict(), "epoch": 9}
    net = rt.load_dirac_file(saved(tmp_path / "model.pt7", content))
    assert torch.equal(net.fc.bias, params["fc.bias"])


# -- what is refused -------------------------------------------------------------------------------


class Payload:
    """Pickles as a call: whoever unpickles it runs it."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def cifar10(**changes):
    params = oracles.dirac_params((2, 2, 2), generator=torch.Generator().manual_seed(0))
    for name, value in changes.items():
        name = name.replace("__", ".")
        params[name] = value(params.get(name))
        if params[name] is None:
            del params[name]
    return {"params": params}


def spoiled(value):
    def change(tensor):
        tensor = tensor.clone()
        tensor.view(-1)[3] = value
        return tensor

    return change


def rewritten(path, replace, compression=zipfile.ZIP_STORED):
    """The same archive with other bytes in some of its parts."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in parts.items():
            archive.writestr(name, replace(name, data))
    return path


def inflated(path):
    """Claims a storage of 4e8 bytes where the file has 4e3."""
    saved(path, {"params": {"conv": torch.arange(1000, dtype=torch.float32)}})
    large = b"J" + struct.pack("<i", 10**8)
    return rewritten(path, lambda name, data: data.replace(b"M\xe8\x03", large))


def inflated_stream(path):
    """The same in the older format, whose reader allocates before it reads."""
    content = {"params": {"conv": torch.arange(1000, dtype=torch.float32)}}
    saved(path, content, _use_new_zipfile_serialization=False)
    large = b"J" + struct.pack("<i", 2**31 - 1)
    path.write_bytes(path.read_bytes().replace(b"M\xe8\x03", large))
    return path


def bomb(path):
    saved(path, {"params": {"conv": torch.zeros(100_000)}})
    return rewritten(path, lambda name, data: data, zipfile.ZIP_DEFLATED)


def smuggled(path, marker):
    """A call among the tensors of a good archive."""
    content = cifar10()
    content["params"]["fc.bias"] = Payload(os.system, f"touch {marker}")
    return saved(path, content)


def damaged(path):
    data = bytearray(saved(path, cifar10()).read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    return path


def cut(path):
    path.write_bytes(saved(path, cifar10()).read_bytes()[:-1000])
    return path


def cut_stream(path):
    saved(path, cifar10(), _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:-1000])
    return path


def written(path, data):
    path.write_bytes(data)
    return path


def pickled(path, content):
    return written(path, pickle.dumps(content, protocol=2))


def nested(path):
    return written(path, b"\x80\x02" + b"(" * 200_000 + b"l" * 200_000 + b".")


def module(path):
    return saved(path, torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3)))


def folded_with(path, name, value):
    return saved(path, {**folded(cifar10()["params"]), name: value})


REFUSED = {
    # not a file of tensors
    "empty": (lambda p, m: written(p, b""), "is not, or not whole"),
    "text": (lambda p, m: written(p, b"hello\n"), "is not, or not whole"),
    "cut": (lambda p, m: cut(p), "damaged archive"),
    "cut stream": (lambda p, m: cut_stream(p), "is not, or not whole"),
    "flipped bit": (lambda p, m: damaged(p), "damaged"),
    # code
    "call": (lambda p, m: pickled(p, Payload(os.system, f"touch {m}")), "asks for"),
    "eval": (lambda p, m: pickled(p, Payload(eval, f"open({m!r}, 'w')")), "asks for"),
    "call in an archive": (smuggled, "asks for posix.system"),
    "call in params": (
        lambda p, m: saved(p, {"params": Payload(exec, f"open({m!r}, 'w')")}),
        "asks for",
    ),
    "whole module": (lambda p, m: module(p), "asks for torch.nn.modules"),
    # size
    "compressed": (lambda p, m: bomb(p), "is compressed"),
    "inflated": (lambda p, m: inflated(p), "is not, or not whole"),
    "inflated stream": (lambda p, m: inflated_stream(p), "is not, or not whole"),
    "expanded": (
        lambda p, m: saved(p, cifar10(conv=lambda t: torch.zeros(1).expand(10**9, 3, 3, 3))),
        "bytes in a file of",
    ),
    "nested": (lambda p, m: nested(p), "is not, or not whole"),
    "many groups": (
        lambda p, m: saved(p, cifar10(group999__block999__conv=lambda t: torch.zeros(1))),
        "groups of",
    ),
    # not such a net
    "list": (lambda p, m: saved(p, [torch.zeros(3)]), "holds a list"),
    "other net": (lambda p, m: saved(p, rt.simplified_net(8).state_dict()), "neither 'params'"),
    "params a list": (lambda p, m: saved(p, {"params": []}), "'params' is a list"),
    "other part": (lambda p, m: saved(p, {**cifar10(), "x": 1}), "has 'x' beside 'params'"),
    "key of a number": (
        lambda p, m: saved(p, {"params": {**cifar10()["params"], 3: torch.zeros(1)}}),
        "has the key 3",
    ),
    "twice": (
        lambda p, m: saved(p, {**cifar10(), "stats": {"conv": torch.zeros(1)}}),
        "'conv' is in 'params' and in 'stats'",
    ),
    "missing stem": (lambda p, m: saved(p, cifar10(conv=lambda t: None)), "'conv' is missing"),
    "missing": (
        lambda p, m: saved(p, cifar10(group1__block1__beta=lambda t: None)),
        "'group1.block1.beta' (32,) is missing",
    ),
    "odd shape": (
        lambda p, m: saved(p, cifar10(group2__block0__bn__bias=lambda t: t[:5])),
        "'group2.block0.bn.bias' has shape (5,), needs (64,)",
    ),
    "unknown": (
        lambda p, m: saved(p, cifar10(gamma=lambda t: torch.zeros(2))),
        "'gamma' (2,) has no place",
    ),
    "no tensor": (
        lambda p, m: saved(p, cifar10(bn__weight=lambda t: t.tolist())),
        "'bn.weight' is a list",
    ),
    "sparse": (
        lambda p, m: saved(p, cifar10(fc__weight=lambda t: t.to_sparse())),
        "layout torch.sparse_coo",
    ),
    "meta": (lambda p, m: saved(p, cifar10(fc__bias=lambda t: t.to("meta"))), "without numbers"),
    "half": (lambda p, m: saved(p, cifar10(conv=lambda t: t.half())), "torch.float16"),
    "mixed": (lambda p, m: saved(p, cifar10(conv=lambda t: t.float())), "those before it are not"),
    "not a number": (
        lambda p, m: saved(p, cifar10(conv=spoiled(float("nan")))),
        "'conv': entry (0, 0, 1, 0) is nan",
    ),
    "negative variance": (
        lambda p, m: saved(p, cifar10(bn__running_var=spoiled(-1.0))),
        "'bn.running_var' has a negative variance",
    ),
    "other identity": (
        lambda p, m: saved(p, cifar10(eye16_16_3_3=lambda t: t.flip(0))),
        "'eye16_16_3_3' is not the identity",
    ),
    "misnamed identity": (
        lambda p, m: saved(p, cifar10(eye9_9=lambda t: torch.eye(3))),
        "'eye9_9' has shape (3, 3)",
    ),
    "odd layers": (
        lambda p, m: saved(
            p, {"params": oracles.dirac_params((3, 3, 3), generator=torch.Generator())}
        ),
        "has groups of (3, 3, 3) layers",
    ),
    "first version": (
        lambda p, m: saved(
            p, cifar10(group0__block0__conv=lambda t: torch.cat([t, t], 1))
        ),
        "first version",
    ),
    "odd stem": (
        lambda p, m: saved(p, cifar10(conv=lambda t: torch.zeros(16, 3, 5, 5))),
        "has a stem of (5, 5)",
    ),
    "folded, unknown": (
        lambda p, m: folded_with(p, "features.bn.weight", torch.zeros(16)),
        "'features.bn.weight' (16,) has no place",
    ),
    "folded, odd shape": (
        lambda p, m: folded_with(p, "features.conv.bias", torch.zeros(3)),
        "'features.conv.bias' has shape (3,)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_wrong_or_hostile_file_is_refused_in_a_sentence(tmp_path, name):
    make, says = REFUSED[name]
    marker = tmp_path / "executed"
    path = make(tmp_path / "model.pt7", str(marker))
    with pytest.raises(ValueError) as refusal:
        rt.load_dirac_file(path)
    message = str(refusal.value)
    assert message.startswith(f"{path}: ") and says in message
    assert "\n" not in message and len(message) < 400 + len(str(path))
    assert not marker.exists()


def test_the_payloads_are_real(tmp_path):
    marker = tmp_path / "executed"
    pickle.loads(pickle.dumps(Payload(os.system, f"touch {marker}")))
    assert marker.exists()


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no file"):
        rt.load_dirac_file(tmp_path / "nothing.pt7")


def other_rule():
    net = rt.diracnet(10)
    identity = net.conv3.parametrizations.weight[0].identity
    identity.copy_(identity.roll(16, 0))
    return net


def tanh_inside():
    net = rt.diracnet(10)
    net.relu2 = torch.nn.Tanh()
    return net


def other_eps():
    net = rt.diracnet(10)
    net.bn2.eps = 1e-3
    return net


def not_finite():
    net = rt.diracnet(10)
    torch.nn.init.constant_(net.fc.bias, float("inf"))
    return net


@pytest.mark.parametrize(
    ("make", "layout", "says"),
    [
        pytest.param(lambda: rt.diracnet(10, identity="plain"), None, "no DiracNet", id="plain"),
        pytest.param(lambda: rt.diracnet(10, normalize=False), None, "no DiracNet", id="eq4"),
        pytest.param(lambda: rt.simplified_net(8), None, "no DiracNet", id="simplified"),
        pytest.param(lambda: rt.resnet_imagenet(18), None, "no DiracNet", id="resnet"),
        pytest.param(lambda: torch.nn.Linear(2, 2), None, "'conv0.weight'", id="linear"),
        pytest.param(tanh_inside, None, "it has Tanh()", id="tanh"),
        pytest.param(other_eps, None, "eps=0.001", id="eps"),
        pytest.param(other_rule, None, "identity in 'conv3'", id="rule"),
        pytest.param(not_finite, None, "'fc.bias': entry (0,) is inf", id="inf"),
        pytest.param(lambda: rt.diracnet(10), "folded", "fold it first", id="unfolded"),
        pytest.param(lambda: rt.diracnet(10), "flat", "layout: unknown name", id="name"),
        pytest.param(
            lambda: rt.fold(rt.diracnet(10).eval()), "params", "needs layout='folded'", id="folded"
        ),
    ],
)
def test_nets_that_have_no_place_in_the_layouts(tmp_path, make, layout, says):
    with pytest.raises(ValueError) as refusal:
        rt.save_dirac_file(tmp_path / "a.pth", make(), layout=layout)
    assert says in str(refusal.value)
    assert not list(tmp_path.iterdir())


# -- folded checkpoints ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [lambda: rt.diracnet(10, width=2), lambda: rt.simplified_net(8, identity="residual")],
    ids=["dirac", "residual"],
)
def test_a_folded_net_comes_back_from_its_checkpoint(tmp_path, make):
    net = rt.fold(make().eval())
    assert net.architecture["then"] == ["fold"]
    rt.save_checkpoint(tmp_path / "folded.json", net)
    again = rt.load_checkpoint(tmp_path / "folded")
    assert str(again) == str(net) and equal(again.state_dict(), net.state_dict())
    assert again.architecture == net.architecture


def test_conversions_are_those_of_a_list():
    record = {"builder": "diracnet", "arguments": {"depth": 10}, "then": ["train"]}
    with pytest.raises(ValueError, match="architecture: unknown name 'train'"):
        rt.training.build_net(record)


def test_an_imported_net_is_kept_with_its_record(tmp_path, generator):
    params = oracles.dirac_params((2, 2, 2), classes=6, generator=generator)
    net = rt.load_dirac_file(saved(tmp_path / "model.pt7", {"params": params}))
    rt.save_checkpoint(tmp_path / "net.json", net)
    again = rt.load_checkpoint(tmp_path / "net.json")
    assert equal(again.state_dict(), net.state_dict())


def test_nothing_is_left_of_the_mapped_file(tmp_path, generator):
    """The net's tensors are its own: the file may change or go."""
    params = oracles.dirac_params((2, 2, 2), generator=generator)
    path = saved(tmp_path / "model.pt7", {"params": params})
    net = rt.load_dirac_file(path)
    path.write_bytes(io.BytesIO(bytes(path.stat().st_size)).getvalue())
    assert torch.equal(net.fc.weight, params["fc.weight"])
