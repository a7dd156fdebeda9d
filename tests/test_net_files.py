"""Files of nets: where they are looked for, what they hold, which weights of several are taken."""

import re
import threading
import time

import pytest
import torch
from small_trainings import difference
from tolerances import assert_same
from torch import nn

import resid_theory as rt
from resid_theory import training
from resid_theory.runtime import store
from resid_theory.training import presets, saved_nets
from resid_theory.training.saved_nets import architecture_of, build_net, find_checkpoint

RECORD = {"builder": "simplified_net", "arguments": {"depth": 5, "generator": 3}}


# -- where -----------------------------------------------------------------------------------------


@pytest.fixture
def places(tmp_path, monkeypatch):
    """The current folder, the one of the variable, and that of the checkout."""
    for name in ("here", "named", "checkout/paper_scale"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("RESID_THEORY_CHECKPOINTS", str(tmp_path / "named"))
    monkeypatch.setattr(saved_nets, "_CHECKOUT", tmp_path / "checkout")
    return tmp_path


def test_a_path_comes_before_the_named_folder_and_that_before_the_checkout(places):
    expected = []
    for folder in ("checkout", "named", "here"):
        for path in (f"{folder}/a/net.json", f"{folder}/a.json"):
            (places / path).parent.mkdir(exist_ok=True)
            (places / path).write_text("")
            expected.append(places / path)
            assert find_checkpoint("a").resolve() == places / path
    (places / "here" / "b").write_text("")
    assert find_checkpoint("b").name == "b"
    (places / "named" / "c.v2.json").write_text("")
    assert find_checkpoint("c.v2") == places / "named" / "c.v2.json"


def test_a_net_that_is_nowhere_is_told_with_those_that_are(places, monkeypatch):
    checkout, named = places / "checkout", places / "named"
    with pytest.raises(FileNotFoundError) as caught:
        find_checkpoint("no")
    assert str(caught.value) == (
        f"name: no checkpoint 'no': it is no path here, and there is no no.json in {named} nor in "
        f"{checkout}; trained nets ship with the checkout: install it with pip install -e, or set "
        "RESID_THEORY_CHECKPOINTS to its experiments/checkpoints"
    )
    for name in ("b", "paper_scale/a", "a"):
        rt.save_checkpoint(checkout / f"{name}.json", build_net(RECORD), about={"data": name})
    monkeypatch.delenv("RESID_THEORY_CHECKPOINTS")
    with pytest.raises(FileNotFoundError) as caught:
        find_checkpoint("no")
    assert str(caught.value) == (
        "name: no checkpoint 'no': it is no path here, and there is no no.json in "
        f"$RESID_THEORY_CHECKPOINTS (not set) nor in {checkout}; there are a, b, paper_scale/a"
    )
    assert training.list_checkpoints() == {
        name: {"architecture": RECORD, "about": {"data": name}}
        for name in ("a", "b", "paper_scale/a")
    }


# -- what ------------------------------------------------------------------------------------------


def test_a_file_holds_architecture_and_facts(tmp_path):
    net, bare = build_net(RECORD), nn.Linear(2, 3)
    rt.save_checkpoint(tmp_path / "net.json", net, about={"seed": 1})
    bare.bias.data.fill_(torch.nan)  # of a training that went wrong
    rt.save_checkpoint(tmp_path / "bare.json", bare)
    tensors, content = store.read_checkpoint(tmp_path / "net.json")
    assert content == {"kind": "net", "architecture": RECORD, "about": {"seed": 1}}
    assert_same(tensors, dict(net.state_dict()))
    content = store.read_checkpoint(tmp_path / "bare.json")[1]
    assert content == {"kind": "net", "architecture": None, "about": {}}
    own = nn.Sequential(*build_net(RECORD))
    own.load_state_dict(dict(zip(own.state_dict(), net.state_dict().values(), strict=True)))
    says = f"builds another net: missing: {next(iter(own.state_dict()))!r}, "
    with pytest.raises(ValueError, match=re.escape(says)):
        rt.save_checkpoint(tmp_path / "own.json", own, architecture=RECORD)
    other = build_net({**RECORD, "arguments": {"depth": 5, "generator": 4}})
    rt.save_checkpoint(tmp_path / "other.json", other, architecture=RECORD)
    assert difference(rt.load_checkpoint(tmp_path / "other"), other) == 0


def test_a_training_builds_a_net_once_to_check_its_record(tmp_path, monkeypatch):
    built, build = [], saved_nets.build_net
    monkeypatch.setattr(saved_nets, "build_net", lambda r: built.append(r) or build(r))
    data = torch.randn(2, 3, 8, 8), torch.arange(2)
    recipe = rt.Recipe(epochs=1, batch=2, milestones=(), augmentation="none", precision="float64")
    rt.train(build(RECORD), data, recipe, seed=0, device="cpu", out=tmp_path, progress=False)
    assert built == [RECORD]
    assert store.read_checkpoint(tmp_path / "net.json")[1]["architecture"] == RECORD


def test_a_net_that_was_changed_has_no_record():
    net = build_net(RECORD)
    assert architecture_of(net) == RECORD and architecture_of(nn.Linear(2, 2)) is None
    name = next(name for name, module in net.named_children() if isinstance(module, nn.ReLU))
    setattr(net, name, nn.Tanh())  # of the same names and shapes
    assert architecture_of(net) is None
    wide = build_net(RECORD)
    wide.register_buffer("more", torch.ones(1))
    assert architecture_of(wide) is None
    wide.architecture = "simplified_net"
    assert architecture_of(wide) is None


def test_a_net_is_built_without_a_trace_and_says_what_it_needs():
    state = torch.get_rng_state()
    net = build_net({"builder": "ShortcutNet", "arguments": {"width": 3, "blocks": 1,
                                                             "shortcut_depth": 2}})  # fmt: skip
    assert isinstance(net, rt.ShortcutNet) and torch.equal(torch.get_rng_state(), state)
    for record, says in (
        ({"builder": "x" * 99}, f"architecture: builder '{'x' * 79} is no public name of"),
        ({}, "architecture: builder None is no public name of resid_theory that builds a net, "),
        ({"builder": "diracnet", "arguments": {"deep": "y" * 99}},
         f"architecture: diracnet does not take arguments {{'deep': '{'y' * 70}"),
        ({**RECORD, "then": ["train"]}, "architecture: unknown name 'train'; "),
    ):  # fmt: skip
        with pytest.raises(ValueError) as caught:
            build_net(record)
        assert str(caught.value).startswith(says)
        assert len(str(caught.value)) < 400
    arguments = {"depth": 5, "identity": "residual", "generator": 3}
    record = {"builder": "simplified_net", "arguments": arguments, "then": ["to_plain"]}
    plain = build_net(record)
    assert plain.architecture == record and not plain.training
    expected = rt.to_plain(build_net({**record, "then": []}))
    assert difference(plain, expected) == 0


def test_presets_have_options_seeds_and_classes():
    net = presets.net_of("simplified", seed=2, classes=3, depth=8, identity=None)
    expected = rt.simplified_net(8, classes=3, generator=2)
    assert str(net) == str(expected) and difference(net, expected) == 0
    for settings, says in (
        ({"seed": -1}, "seed: got -1, needs at least 0"),
        ({"classes": 1}, "classes: got 1, needs at least 2"),
        ({"width": 2}, "width: got 2, which 'simplified' does not have; needs one of "
         + ", ".join(presets.KINDS["simplified"].options)),
    ):  # fmt: skip
        with pytest.raises(ValueError) as caught:
            presets.net_of("simplified", **settings)
        assert str(caught.value) == says
    assert not {"classes", "generator"} & set(presets.KINDS["simplified"].options)
    assert training.NOISE_STABILITY.padding == "zeros" and training.DIRACNETS.padding == "reflect"


# -- which -----------------------------------------------------------------------------------------

NAMES = ["state_dict", "model_state_dict", "model", "net", "module", "weights", "params"]


@pytest.mark.parametrize(("place", "name"), list(enumerate(NAMES)), ids=NAMES)
def test_of_several_state_dicts_that_of_a_usual_name_is_taken(tmp_path, place, name):
    wanted, other = nn.Linear(2, 3), nn.Linear(2, 3)
    content = {"ema": other.state_dict(), name: wanted.state_dict()}
    content |= {later: other.state_dict() for later in NAMES[place + 1 :]}
    torch.save({"epoch": 3, **dict(reversed(content.items()))}, tmp_path / "a.pt")
    net = rt.load_checkpoint(tmp_path / "a.pt", net=nn.Linear(2, 3))
    assert_same(dict(net.state_dict()), dict(wanted.state_dict()))


def test_a_state_dict_inside_another_mapping_is_found(tmp_path):
    wanted = nn.Linear(2, 3)
    torch.save({"model": {"net": {"state_dict": wanted.state_dict()}}}, tmp_path / "a.pt")
    net = rt.load_checkpoint(tmp_path / "a.pt", net=nn.Linear(2, 3))
    assert_same(dict(net.state_dict()), dict(wanted.state_dict()))
    torch.save({"model": {"rates": 3, "none": {}}}, tmp_path / "b.pt")
    with pytest.raises(ValueError) as caught:
        rt.load_checkpoint(tmp_path / "b.pt", net=nn.Linear(2, 3))
    assert str(caught.value) == (
        f"{tmp_path}/b.pt: holds no state dict, its entries are 'rates', 'none'; needs tensors by "
        "name, or one such mapping under 'state_dict' or 'model_state_dict' or 'model'"
    )
    torch.save({}, tmp_path / "c.pt")
    with pytest.raises(ValueError, match="holds no state dict, its entries are nothing; needs"):
        rt.load_checkpoint(tmp_path / "c.pt", net=nn.Linear(2, 3))


# -- locks -----------------------------------------------------------------------------------------


def test_a_lock_without_a_message_waits_for_the_other_one(tmp_path):
    pytest.importorskip("fcntl", reason="there are no locks here")
    order = []

    def second():
        with store.locked(tmp_path / "lock"):
            order.append("second")

    thread = threading.Thread(target=second)
    with store.locked(tmp_path / "lock"):
        thread.start()
        time.sleep(0.05)
        order.append("first")
    thread.join(20)
    assert order == ["first", "second"]
