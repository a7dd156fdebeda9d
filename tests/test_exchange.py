"""The DiracNet authors' files: the same function, the same bits, and nothing hostile gets in."""

import oracles
import pytest
import torch
from tolerances import assert_same, relative_error
from trials import Payload

import resid_theory as rt

FLOAT32 = 1e-6
"""What float32 promises over a whole net: 8 roundings, of outputs relative to the largest."""


def saved(path, content, **options):
    torch.save(content, path, **options)
    return path


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


# -- one function ----------------------------------------------------------------------------------


def round_trip(path, content):
    """The net of a file; written again it is the same file, and read again the same net."""
    net = rt.load_dirac_file(saved(path / "a.pth", content))
    rt.save_dirac_file(path / "b.pth", net)
    assert_same(torch.load(path / "b.pth", weights_only=True), content)
    counts = [t for name, t in net.named_buffers() if name.endswith("num_batches_tracked")]
    assert not any(map(bool, counts))  # which the files have not
    assert_same(rt.load_dirac_file(path / "b.pth").state_dict(), net.state_dict())
    return net


@pytest.mark.parametrize(
    ("layers", "depth"),
    [((2, 2, 2), 10), ((8, 8, 8), 28), ((4, 4, 4, 4), 18)],
    ids=str,
)
def test_nets_are_the_authors_function_and_come_back_bit_for_bit(
    tmp_path, generator, layers, depth
):
    imagenet = len(layers) == 4
    params = oracles.dirac_params(
        layers, classes=7, imagenet=imagenet, generator=generator, dtype=torch.float32
    )
    net = round_trip(tmp_path, {"params": params})
    side = 64 if imagenet else 16
    x = torch.randn(1, 3, side, side, generator=generator, dtype=torch.float32)
    assert net.architecture["builder"] == ("diracnet_imagenet" if imagenet else "diracnet")
    assert (net.architecture["arguments"]["depth"], net(x).shape) == (depth, (1, 7))
    assert relative_error(net(x), oracles.dirac_function(x, params)) < FLOAT32


def test_the_deeper_imagenet_net_has_the_authors_names(tmp_path, generator):
    params = oracles.dirac_params(
        (6, 8, 12, 6), classes=7, imagenet=True, generator=generator, dtype=torch.float32
    )
    net = rt.load_dirac_file(saved(tmp_path / "model.pt7", {"params": params}))
    assert net.architecture["arguments"]["depth"] == 34
    x = torch.randn(1, 3, 32, 32, generator=generator, dtype=torch.float32)
    assert relative_error(net(x), oracles.dirac_function(x, params)) < FLOAT32


@pytest.mark.parametrize("imagenet", [False, True], ids=["cifar", "imagenet"])
def test_folded_nets_are_the_authors_function_and_come_back_bit_for_bit(
    tmp_path, generator, imagenet
):
    layers = (4, 4, 4, 4) if imagenet else (4, 4, 4)
    params = oracles.dirac_params(
        layers, imagenet=imagenet, generator=generator, dtype=torch.float32
    )
    tensors = folded(params)
    net = round_trip(tmp_path, tensors)
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


# -- other forms ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "form", ["statistics apart", "older torch", "no identities", "training", "parallel"]
)
def test_other_forms_of_a_file(tmp_path, generator, form):
    params = oracles.dirac_params((2, 2, 2), generator=generator)
    content, options = {"params": params}, {}
    if form == "statistics apart":  # as in older files
        apart = {k: v for k, v in params.items() if ".running_" in k or k.startswith("eye")}
        content = {"params": {k: v for k, v in params.items() if k not in apart}, "stats": apart}
    if form == "no identities":
        content = {"params": {k: v for k, v in params.items() if not k.startswith("eye")}}
    if form == "older torch":
        options = {"_use_new_zipfile_serialization": False}
    if form == "training":  # the state of an optimizer with momentum stands beside the tensors
        weight = torch.nn.Parameter(torch.ones(2))
        optimizer = torch.optim.SGD([weight], 0.1, momentum=0.9)
        weight.sum().backward()
        optimizer.step()
        content |= {"optimizer": optimizer.state_dict(), "epoch": 9}
    if form == "parallel":  # trained in a DataParallel
        content = {"params": {f"module.{name}": tensor for name, tensor in params.items()}}
    other = saved(tmp_path / "other", content, **options)
    assert (other.read_bytes()[:2] == b"PK") is (form != "older torch")
    net = rt.load_dirac_file(saved(tmp_path / "plain", {"params": params}))
    assert_same(rt.load_dirac_file(other).state_dict(), net.state_dict())


def test_a_variance_may_be_zero(tmp_path):
    net = rt.load_dirac_file(saved(tmp_path / "a.pth", cifar10("bn.running_var", torch.zeros_like)))
    assert [n for n, b in net.named_buffers() if n.endswith("var") and not b.any()] == [
        "bn0.running_var"
    ]


def test_a_folded_net_exports_from_its_own_fold(tmp_path):
    net = rt.diracnet(10, width=2, classes=4).eval()
    rt.save_dirac_file(tmp_path / "a.pth", rt.fold(net))
    again = rt.load_dirac_file(tmp_path / "a.pth")
    x = torch.randn(2, 3, 16, 16)
    assert_same(again(x), rt.fold(net)(x))


def test_a_file_holds_no_memory_beside_the_tensors(tmp_path):
    net = rt.diracnet(10)
    rt.save_dirac_file(tmp_path / "a.pth", net)
    net.fc.weight.data = net.fc.weight.data.repeat(9, 1)[: len(net.fc.weight)]
    rt.save_dirac_file(tmp_path / "b.pth", net)
    assert (tmp_path / "a.pth").stat().st_size == (tmp_path / "b.pth").stat().st_size


# -- what is refused -------------------------------------------------------------------------------


def cifar10(name=None, change=None):
    """A file of the authors with one tensor changed, added or, by None, left out."""
    params = oracles.dirac_params((2, 2, 2), generator=torch.Generator().manual_seed(0))
    if name is not None:
        params[name] = change(params.get(name))
        if params[name] is None:
            del params[name]
    return {"params": params}


def one(_):
    return torch.ones(1)


SIGNS = torch.tensor([1.0] * 15 + [-1.0])
REFUSED = [
    ("call inside", lambda m: cifar10("fc.bias", lambda t: Payload(m)), "asks for posix.system"),
    ("expanded", lambda m: cifar10("conv", lambda t: t[:1].expand(10**9, 3, 3, 3)), "claim"),
    ("list", lambda m: [torch.zeros(3)], "holds a list"),
    ("other net", lambda m: rt.simplified_net(8).state_dict(), "or --model with"),
    ("no dict", lambda m: {"params": []}, "'params' is a list"),
    ("other part", lambda m: {**cifar10(), "x": 1}, "has 'x' beside 'params'"),
    ("number as key", lambda m: {"params": {3: torch.zeros(1)}}, "has the key 3"),
    ("twice", lambda m: {**cifar10(), "stats": {"conv": 0}}, "in 'params' and in 'stats'"),
    ("no stem", lambda m: cifar10("conv", lambda t: None), "'conv' is missing"),
    ("no b", lambda m: cifar10("group1.block1.beta", lambda t: None), "missing: 'group1.bl"),
    ("shape", lambda m: cifar10("bn.bias", lambda t: t[:5]), "'bn.bias' (5,) for (16,)"),
    ("unknown", lambda m: cifar10("gamma", lambda t: torch.zeros(2)), "unexpected: 'gamma'"),
    ("no tensor", lambda m: cifar10("bn.bias", lambda t: t.tolist()), "'bn.bias' is a list"),
    ("sparse", lambda m: cifar10("fc.weight", lambda t: t.to_sparse()), "needs a dense tensor"),
    ("meta", lambda m: cifar10("fc.bias", lambda t: t.to("meta")), "needs a dense tensor"),
    ("half", lambda m: cifar10("conv", lambda t: t.half()), "torch.float16"),
    ("mixed", lambda m: cifar10("bn.bias", lambda t: t.float()), "one for all"),
    ("nan", lambda m: cifar10("conv", lambda t: t / 0 * 0), "'conv': entry (0, 0, 0, 0) is nan"),
    ("variance", lambda m: cifar10("bn.running_var", lambda t: t * SIGNS), "negative variance"),
    ("eye", lambda m: cifar10("eye16_16_3_3", lambda t: t.flip(0)), "is not the identity"),
    (
        "other groups",
        lambda m: {"params": oracles.dirac_params((2,) * 4, imagenet=True)},
        "groups of (2, 2, 2, 2) layers, needs [(4, 4, 4, 4), (6, 8, 12, 6)]",
    ),
    ("even eye", lambda m: cifar10("eye1_1_2_2", lambda t: torch.ones(1, 1, 2, 2)), "odd sides"),
    ("eye's name", lambda m: cifar10("eye9_9", lambda t: torch.eye(3)), "has shape (3, 3)"),
    ("odd depth", lambda m: {"params": oracles.dirac_params((3,) * 3)}, "groups of (3, 3, 3)"),
    (
        "groups",
        lambda m: cifar10("group9.block0.conv", lambda t: torch.zeros(1)),
        "has groups of (2, 2, 2, 0, 0, 0, 0, 0, 0, 1) layers, needs three times 2N",
    ),
    (
        "no groups",
        lambda m: {
            "params": {
                name: t
                for name, t in cifar10()["params"].items()
                if "." not in name or name.startswith(("bn", "fc"))
            }
        },
        "has groups of () layers, needs three times 2N",
    ),
    (
        "version 1",
        lambda m: cifar10("group0.block0.conv", lambda t: torch.cat([t, t], 1)),
        "has kernels of twice the inputs, (16, 32, 3, 3), as the paper's first version",
    ),
    ("stem", lambda m: cifar10("conv", lambda t: torch.zeros(16, 3, 5, 5)), "a stem of (5, 5)"),
    ("width", lambda m: cifar10("conv", lambda t: torch.zeros(17, 3, 3, 3)), "stem of 17 channels"),
    ("no width", lambda m: cifar10("conv", lambda t: t[:0]), "has a stem of 0 channels, needs 16"),
    (
        "folded",
        lambda m: folded(cifar10("x", one)["params"]) | {"features.x": one(0)},
        "unexpected: 'features.x'",
    ),
]


def refusal_of(path):
    with pytest.raises(ValueError) as refusal:
        rt.load_dirac_file(path)
    message = str(refusal.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message and len(message) < 400 + len(str(path))
    return message


@pytest.mark.parametrize(
    ("make", "says"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED]
)
def test_a_wrong_or_hostile_file_is_refused_in_a_sentence(tmp_path, make, says):
    marker = tmp_path / "executed"
    path = saved(tmp_path / "model.pt7", make(str(marker)))
    assert says in refusal_of(path)
    assert not marker.exists()


def test_tensors_may_claim_no_more_bytes_than_the_file_has(tmp_path):
    path = saved(tmp_path / "model.pt7", {"params": {"conv": torch.ones(1).expand(1000)}})
    size = path.stat().st_size
    assert 1000 / 8 < size < 8 * 1000
    assert refusal_of(path).endswith(f"its tensors claim 8000 bytes in a file of {size}")


def flipped(data):
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


@pytest.mark.parametrize(
    ("zipped", "change"),
    [
        (True, lambda data: data[:-1000]),
        (False, lambda data: data[:-1000]),
        (True, lambda data: b"hello\n"),
        (True, lambda data: b""),
        (True, flipped),  # the older format has no checksums
    ],
    ids=["cut", "cut stream", "text", "empty", "flipped"],
)
def test_damaged_files(tmp_path, zipped, change):
    path = tmp_path / "model.pt7"
    saved(path, cifar10(), _use_new_zipfile_serialization=zipped)
    path.write_bytes(change(path.read_bytes()))
    assert "is not, or not whole" in refusal_of(path)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        rt.load_dirac_file(tmp_path / "nothing.pt7")


def changed(name, change):
    net = rt.diracnet(10)
    change(net.get_submodule(name))
    return net


WEIGHT = "parametrizations.weight"
OTHER_NETS = [
    ("plain", lambda: rt.diracnet(10, identity="plain"), "no DiracNet"),
    ("eq4", lambda: rt.diracnet(10, normalize=False), "no DiracNet"),
    ("simplified", lambda: rt.simplified_net(8), "no DiracNet"),
    ("resnet", lambda: rt.resnet_imagenet(18), "no DiracNet"),
    ("linear", lambda: torch.nn.Linear(2, 2), "'conv0.weight'"),
    ("tanh", lambda: changed("", lambda net: setattr(net, "relu2", torch.nn.Tanh())), "has Tanh()"),
    ("eps", lambda: changed("bn2", lambda norm: setattr(norm, "eps", 1e-3)), "eps=0.001"),
    (
        "rule",
        lambda: changed(f"conv3.{WEIGHT}.0", lambda w: w.identity.mul_(2)),
        "an identity (32,",
    ),
    (
        "shape",
        lambda: changed("fc", lambda fc: setattr(fc.weight, "data", torch.ones(10, 7))),
        "of another shape: 'fc.weight' (10, 7) for (10, 64)",
    ),
    (
        "inf",
        lambda: changed("fc", lambda fc: fc.bias.data[3:].fill_(torch.inf)),
        "net: 'fc.bias': entry (3,) is inf (7 of 10 entries",
    ),
    (
        "statistics",
        lambda: changed("bn2", lambda norm: norm.running_mean[5].fill_(torch.nan)),
        "net: 'bn2.running_mean': entry (5,) is nan (1 of 16 entries",
    ),
]


@pytest.mark.parametrize(
    ("make", "says"), [row[1:] for row in OTHER_NETS], ids=[row[0] for row in OTHER_NETS]
)
def test_nets_that_have_no_place_in_the_layouts(tmp_path, make, says):
    with pytest.raises(ValueError) as refusal:
        rt.save_dirac_file(tmp_path / "a.pth", make())
    assert says in str(refusal.value)
    assert not list(tmp_path.iterdir())


# -- checkpoints of folded and of imported nets ----------------------------------------------------


def imported(path):
    return rt.load_dirac_file(saved(path, cifar10()))


@pytest.mark.parametrize(
    ("make", "then"),
    [
        (lambda path: rt.fold(rt.diracnet(10, width=2).eval()), ["fold"]),
        (lambda path: rt.fold(rt.simplified_net(8, identity="residual").eval()), ["fold"]),
        (imported, None),
        (lambda path: rt.fold(imported(path)), ["fold"]),
    ],
    ids=["dirac", "residual", "imported", "imported and folded"],
)
def test_a_net_comes_back_from_its_checkpoint(tmp_path, make, then):
    net = make(tmp_path / "model.pt7")
    assert net.architecture.get("then") == then
    rt.save_checkpoint(tmp_path / "net.json", net)
    again = rt.load_checkpoint(tmp_path / "net")
    assert str(again) == str(net) and again.architecture == net.architecture
    assert_same(again.state_dict(), net.state_dict())


def test_conversions_are_those_of_a_list():
    record = {"builder": "diracnet", "arguments": {"depth": 10}, "then": ["train"]}
    with pytest.raises(ValueError, match="architecture: unknown name 'train'"):
        rt.training.build_net(record)
