"""Weights from elsewhere: their forms, and what is refused."""

import argparse
import os

import pytest
import torch
from safetensors.torch import save_file
from tolerances import assert_same
from torch import nn
from torch.nn.utils import parametrizations

import resid_theory as rt
from resid_theory.runtime.weight_files import load_weights, read_safely, without_wrappers


def build(seed=1):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Sequential(nn.Linear(4, 2)))


def prefixed(prefix):
    return {f"{prefix}{name}": tensor for name, tensor in build(0).state_dict().items()}


def beside(name):
    """What a training writes: weights under a name, and other things."""
    momenta = {0: {"momentum_buffer": torch.ones(3)}}
    return {"epoch": 3, name: prefixed(""), "optimizer": {"state": momenta}, "best": torch.ones(1)}


def inside(net):
    net[2] = nn.DataParallel(net[2])
    return net


WRITTEN = build(0).state_dict()  # in float32, which a net of float64 takes over
FORMS = {
    "plain": prefixed(""),
    "state_dict": beside("state_dict"),
    "model": beside("model"),
    "another name": beside("ema"),
    "parallel": prefixed("module."),
    "compiled": prefixed("_orig_mod."),
    "both, in state_dict": {"state_dict": prefixed("_orig_mod.module.")},
    "parallel inside": inside(build(0)).state_dict(),
    "averaged": torch.optim.swa_utils.AveragedModel(build(0)).state_dict(),
    "of a module that holds it": {"state_dict": prefixed("model."), "epoch": 1},
    "older, without counts": {n: t for n, t in prefixed("").items() if "num_" not in n},
}


@pytest.mark.parametrize("wrap", [lambda net: net, nn.DataParallel, inside],
                         ids=["net", "parallel", "parallel inside"])  # fmt: skip
@pytest.mark.parametrize("form", FORMS)
def test_weights_from_elsewhere(tmp_path, form, wrap):
    torch.save(FORMS[form], tmp_path / "net.pt")
    net = wrap(build())
    assert rt.load_checkpoint(tmp_path / "net.pt", net=net) is net
    assert not any(module.training for module in net.modules())
    assert_same(list(net.state_dict().values()), list(WRITTEN.values()))


def test_other_files_and_names(tmp_path):
    save_file(prefixed("module."), tmp_path / "net.safetensors")
    net = build().double()
    nn.init.constant_(net[0].weight, torch.nan)
    rt.load_checkpoint(tmp_path / "net.safetensors", net=net)
    assert_same(net.state_dict(), build(0).state_dict())
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "layer.pt")  # names without a dot
    rt.load_checkpoint(tmp_path / "layer.pt", net=nn.Linear(2, 2))
    with pytest.warns(FutureWarning):
        old = nn.Sequential(nn.utils.weight_norm(nn.Linear(3, 2)))
    torch.save(old.state_dict(), tmp_path / "old.pt")
    new = nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 2)))
    rt.load_checkpoint(tmp_path / "old.pt", net=new)
    old(torch.eye(3))
    assert_same(new[0].weight.detach(), old[0].weight.detach())
    with pytest.raises(ValueError, match=r"net.safetensors: has no architecture record; pass the"):
        rt.load_checkpoint(tmp_path / "net.safetensors")


def test_extra_state_is_kept_and_is_no_tensor(tmp_path):
    class Counting(nn.Linear):
        def get_extra_state(self):
            return {"calls": self.calls}

        def set_extra_state(self, state):
            self.calls = state["calls"]

    net, other = Counting(2, 2), Counting(2, 2)
    net.calls, other.calls = 3, 0
    torch.save(net.state_dict(), tmp_path / "net.pt")
    assert rt.load_checkpoint(tmp_path / "net.pt", net=other).calls == 3
    assert_same(dict(other.named_parameters()), dict(net.named_parameters()))


def test_names_of_one_tensor(tmp_path):
    net = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    net[1].weight = net[0].weight
    save_file({"1.weight": torch.eye(3)}, tmp_path / "one.safetensors")
    rt.load_checkpoint(tmp_path / "one.safetensors", net=net)
    assert torch.equal(net[0].weight, torch.eye(3))
    torch.save({"0.weight": torch.eye(3), "1.weight": torch.ones(3, 3)}, tmp_path / "two.pt")
    with pytest.raises(ValueError, match="'0.weight' and '1.weight' are one tensor there"):
        rt.load_checkpoint(tmp_path / "two.pt", net=net)


def test_names_of_one_tensor_in_other_forms():
    """Both missing; not numbers; of two dtypes; without entries, which are in no place."""
    net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    net[1].weight = net[0].weight
    with pytest.raises(ValueError) as caught:
        load_weights(net, {"c": torch.ones(1)})
    assert str(caught.value) == (
        "does not fit the net: missing: '0.weight', '1.weight'; unexpected: 'c'"
    )
    weight = torch.tensor([[torch.nan, 0.1], [0.2, 0.3]], dtype=torch.float64)
    load_weights(net, {"0.weight": weight, "1.weight": weight.float()})
    assert_same(net[0].weight.detach().nan_to_num(7), weight.float().double().nan_to_num(7))
    empty = nn.ParameterList([torch.ones(2, 0), torch.ones(2, 0)])
    with pytest.raises(ValueError, match=r"^does not fit the net: missing: '1'$"):
        load_weights(empty, {"0": torch.ones(2, 0)})


def test_weights_of_complex_nets_keep_their_imaginary_parts():
    def mixed():
        real, complex_ = nn.Linear(2, 2).float(), nn.Linear(2, 2, dtype=torch.complex128)
        return nn.Sequential(real, complex_)

    wanted, net = mixed(), mixed()
    load_weights(net, wanted.state_dict())
    assert_same(net.state_dict(), wanted.state_dict())


def test_names_with_and_without_wrappers_stand_for_themselves():
    entries = {"a.module.b": 1, "a.b": 2, "_orig_mod.c": 3}
    assert without_wrappers(entries) == entries
    del entries["a.b"]
    assert without_wrappers(entries) == {"a.b": 1, "c": 3}


def test_what_torch_says_of_a_file_is_told_in_part(tmp_path, monkeypatch):
    def said(words):
        def load(*_, **__):
            raise RuntimeError(words)

        monkeypatch.setattr(torch, "load", load)
        with pytest.raises(ValueError) as caught:
            read_safely(tmp_path / "net.pt")
        return str(caught.value)

    begin = "is not, or not whole, a file of tensors by torch.save"
    long = "WeightsUnpickler error: " + "x" * 250
    assert said(f"see WeightsUnpickler error: no.\n WeightsUnpickler error: {long}") == (
        f"{begin} ({'x' * 200})"
    )
    assert said("Bad file. Or not.\nAt all") == f"{begin} (Bad file)"
    assert said("Bad file\nor not. At all") == f"{begin} (Bad file)"
    assert said("WeightsUnpickler error: ") == f"{begin} (RuntimeError)"
    assert said("No GLOBAL os.system is allowed. GLOBAL b") == (
        "asks for os.system, which no file of plain tensors does; nothing in it was run"
    )


class Payload:
    """Pickles as a call: whoever unpickles it runs it."""

    def __reduce__(self):
        return os.system, ("false",)


def test_nothing_in_a_file_is_run_where_torch_may_run_all(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    torch.save({"a.b": Payload()}, tmp_path / "net.pt")
    with pytest.raises(ValueError, match="^asks for posix.system"):
        read_safely(tmp_path / "net.pt")


REFUSED = {
    "complex": (
        {name: value * 1j for name, value in prefixed("").items()},
        "of another shape: '0.weight' (4, 3) complex",
    ),
    "call": ({"a.b": Payload()}, "asks for posix.system, which no file of plain tensors does"),
    "arguments": ({"state_dict": prefixed(""), "args": argparse.Namespace()}, "argparse.Namespace"),
    "whole module": (build(), "asks for torch.nn.modules.container.Sequential"),
    "list": ([torch.ones(2)], "holds a list, needs a state dict"),
    "number": ({"a": 1.0}, "holds no state dict, its entries are 'a'; needs tensors by name"),
    "strings": (["a"], "holds a list, needs a state dict"),
    "numbered": (
        {n: torch.ones(1) for n in range(6)},
        "holds no state dict, its entries are 0, 1, 2, 3, 4; needs tensors by name",
    ),
    "two": ({"a": prefixed(""), "b": prefixed("")}, "holds several state dicts, its entries are"),
    "missing": ({"0.weight": torch.ones(4, 3)}, "missing: '0.bias', '1.weight', '1.bias', '1.run"),
    "more": (prefixed("") | {"3.weight": torch.ones(1)}, "net: unexpected: '3.weight'"),
    "five more": (
        prefixed("") | {f"x{n}": torch.ones(1) for n in range(5)},
        "net: unexpected: 'x0', 'x1', 'x2', 'x3', 'x4'",
    ),
    "two beginnings": (
        {"a.x": torch.ones(1), "b.y": torch.ones(1)},
        "'1.running_mean' and 3 more; unexpected: 'a.x', 'b.y'",
    ),
    "many more": (prefixed("") | {f"x{n}": torch.ones(1) for n in range(7)}, "'x4' and 2 more"),
    "kinds": (prefixed("") | {"0.bias": 3}, "of another shape: '0.bias' int for (4,)"),
    "shapes": (
        prefixed("") | {"0.weight": torch.ones(3, 4), "0.bias": torch.ones(4) * 1j, "x": 2},
        r"unexpected: 'x'; of another shape: '0.weight' (3, 4) for (4, 3), '0.bias' (4,) complex "
        "for (4,)",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_file_that_does_not_fit_is_refused_and_the_net_left_as_it_was(tmp_path, case):
    content, says = REFUSED[case]
    torch.save(content, tmp_path / "net.pt")
    net = build()
    with pytest.raises(ValueError) as refusal:
        rt.load_checkpoint(tmp_path / "net.pt", net=net)
    said = str(refusal.value)
    assert (
        said.startswith(f"{tmp_path / 'net.pt'}: ") and says in said and " and 0 more" not in said
    )
    assert_same(net.state_dict(), build().state_dict())
    assert net.training


def test_files_that_are_none(tmp_path):
    for name in ("net.pt", "net.safetensors"):
        (tmp_path / name).write_bytes(b"no file of tensors")
        with pytest.raises(
            ValueError, match=rf"{name}: (is not, or not whole|holds no tensors)"
        ) as no:
            rt.load_checkpoint(tmp_path / name, net=build())
        assert "WeightsUnpickler" not in str(no.value) and "()" not in str(no.value)
