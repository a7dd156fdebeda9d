"""A measurement leaves no trace: whatever happens inside, the model comes out as it went in."""

import copy
import operator

import interrupted
import pytest
import torch
from torch import nn

import resid_theory as rt
from resid_theory.runtime.preserve import deterministic, preserved


def model():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Sequential(nn.BatchNorm1d(4))
    )
    net.train()
    net[1].eval()  # a mixed state, which must come back mixed
    return net


@pytest.mark.parametrize("batchnorm", ["eval", "batch"])
def test_buffers_flags_and_randomness_come_back(batchnorm, left_alone):
    net = model()
    with left_alone(net), preserved(net, batchnorm=batchnorm):
        net(torch.randn(5, 3))
        assert (net[3][0].num_batches_tracked.item() == 1) is (batchnorm == "batch")
        net[1].running_mean.fill_(torch.nan)


def test_they_come_back_after_an_error(left_alone):
    net = model()
    with left_alone(net), pytest.raises(RuntimeError, match="inside"), preserved(net):
        torch.rand(1)
        net[1].running_var.zero_()
        raise RuntimeError("inside")


@pytest.mark.parametrize(("batchnorm", "norms"), [("eval", False), ("batch", True)])
def test_modes_inside(batchnorm, norms):
    net = model()
    with preserved(net, batchnorm=batchnorm):
        assert [net.training, net[0].training, net[2].training] == [False] * 3
        assert [net[1].training, net[3][0].training] == [norms] * 2


def test_buffers_that_were_nan_stay_nan(left_alone):
    net = model()
    net[1].running_mean.fill_(torch.nan)
    with left_alone(net), preserved(net):
        net[1].running_mean.zero_()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode], ids=["no-grad", "infer"])
def test_gradients_are_on_inside(mode):
    net = model()
    with mode():
        with preserved(net):
            assert torch.is_grad_enabled()
            assert not torch.is_inference_mode_enabled()
            assert net(torch.ones(2, 3)).requires_grad
        assert not torch.is_grad_enabled()


@pytest.mark.parametrize("engine", ["retained", "rebuilt"])
def test_products_are_those_of_gradients_under_inference_mode(engine):
    """Half the squared error of a linear map: I ⊗ (1/m) Σ x xᵀ."""
    net, x = nn.Linear(3, 2, bias=False).double(), torch.arange(12.0).view(4, 3).double()
    exact = torch.kron(torch.eye(2, dtype=torch.float64), x.mT @ x / 4)
    before = rt.curvature_operator(net, "square", (x, x[:, :2]), engine=engine)
    with torch.inference_mode():
        inside = rt.curvature_operator(net, "square", (x, x[:, :2]), engine=engine)
        found = [operator @ torch.eye(6) for operator in (before, inside)]
        along = rt.curvature.loss_along(inside, torch.ones(6), torch.zeros(1))
    torch.testing.assert_close(torch.stack(found), exact.expand(2, 6, 6))
    assert along.losses.item() == pytest.approx(inside.loss)


@pytest.mark.parametrize("engine", ["retained", "rebuilt"])
def test_an_autocast_around_a_call_does_not_reach_the_net(engine):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3)).float()
    x = torch.randn(5, 8).float()
    data, wide = (x, torch.arange(5) % 3), copy.deepcopy(net).double()

    def measured():
        operator = rt.curvature_operator(net, "cross_entropy", data, engine=engine)
        return [
            operator @ torch.ones(operator.shape[1]),
            operator.gradient,
            rt.layer_cushions(net, x).values,
            rt.interlayer_cushions(net, x, start=0).values,
            rt.stability.weight_noise(net, x, draws=2).measured,
            torch.tensor(rt.evaluate(net, data).loss),
            torch.tensor(rt.check_equivalence(net, net[:], x).outputs),
            torch.tensor(rt.check_equivalence(net, wide, x).outputs),
        ]

    exact, before = measured(), rt.curvature_operator(net, "cross_entropy", data, engine=engine)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, product = measured(), before @ torch.ones(before.shape[1])
        assert net(x).dtype == torch.bfloat16
    torch.testing.assert_close(found, exact, rtol=0, atol=0)
    torch.testing.assert_close(product, exact[0], rtol=0, atol=0)


MODES = {
    "hessian": lambda net, data: rt.hessian(net, "cross_entropy", data),
    "spectrum": lambda net, data: rt.spectrum(
        net, "cross_entropy", data, method="matrix-free").pairs.values,
    "K-FAC": lambda net, data: rt.curvature.kfac(net, "cross_entropy", data).dense(),
    "mini-batches": lambda net, data: torch.tensor([
        found.value for found in rt.curvature.batch_spectra(
            net, "cross_entropy", data, batch=3).largest]),
    "bound": lambda net, data: rt.stability.compression_bound(net, data, margin=0.1).terms,
    "interlayer": lambda net, data: rt.interlayer_cushions(net, data, start=0).values,
    "gap": lambda net, data: torch.tensor(rt.check_equivalence(
        net, copy.deepcopy(net).double(), data, loss="cross_entropy").gradients),
}  # fmt: skip


@pytest.mark.parametrize("call", MODES)
def test_measurements_of_float32_are_the_same_under_inference_mode(call):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)).float()
    data = torch.randn(5, 8).float(), torch.arange(5) % 3
    exact = MODES[call](net, data)
    with torch.inference_mode():
        made_inside, found = tuple(part.clone() for part in data), MODES[call](net, data)
    torch.testing.assert_close(found, exact, rtol=0, atol=0)
    torch.testing.assert_close(MODES[call](net, made_inside), exact, rtol=0, atol=0)


def test_nets_made_under_inference_mode_are_refused():
    x = torch.ones(2, 3, 8, 8)
    with torch.inference_mode():
        net = rt.simplified_net(5)
        assert rt.check_equivalence(net, rt.to_residual(net), x).outputs < 1e-6  # needs none
    for call in (
        lambda: rt.spectrum(net, "cross_entropy", (x, torch.tensor([0, 1]))),
        lambda: rt.dominant_flows(net, (x, torch.tensor([0, 1]))),
        lambda: rt.interlayer_cushions(net, x, start=1),
        lambda: rt.train(net, (x, torch.tensor([0, 1])), rt.Recipe(batch=2), seed=0),
    ):
        with pytest.raises(ValueError, match="^net: 'conv0.weight' was made under torch.inferenc"):
            call()


class Constant(nn.Module):
    """A module with a buffer that it declares constant, and one that it does not."""

    constant_buffers = ("kernel",)

    def __init__(self):
        super().__init__()
        self.register_buffer("kernel", torch.zeros(2), persistent=False)
        self.register_buffer("cache", torch.zeros(2), persistent=False)


def test_tensors_of_another_shape_or_type_come_back(left_alone):
    net = model()
    kinds = [(p.shape, p.dtype) for p in net.parameters()]
    with left_alone(net), preserved(net):
        net[0].weight.data = torch.ones(2, 2)
        net[0].bias.data = net[0].bias.data.float()
    assert [(p.shape, p.dtype) for p in net.parameters()] == kinds


def test_settings_that_cannot_be_read_are_left(monkeypatch):
    def contradicted():
        raise RuntimeError("names contradict each other")

    monkeypatch.setattr(torch, "get_float32_matmul_precision", contradicted)
    written = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", written.append)
    with deterministic():
        pass
    assert not written


def test_constant_buffers_are_not_copied():
    net = nn.Sequential(Constant())
    with preserved(net):
        for buffer in net.buffers():
            buffer.fill_(1)
    assert [float(buffer.sum()) for buffer in net.buffers()] == [2, 0]


class Writing(nn.Module):
    """Writes weights in forward, and keeps in attributes what it computes from them."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(7, 4, max_norm=0.5)
        self.out = nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))
        self.calls, self.caches, self.bias = 0, {"cpu": []}, None

    def forward(self, ids):
        self.calls += 1
        self.bias = self.out.bias * 2.0 if self.bias is None else self.bias
        self.caches["cpu"].append(self.bias)
        self.caches["gpu"], self.new = self.bias, self.bias
        with torch.no_grad():
            self.out.bias.data.clamp_(min=0.1)  # counts in no version
        return self.out(self.table(ids)) + self.bias


def test_weights_and_caches_come_back(left_alone):
    net = Writing()
    caches, before = net.caches, [parameter.detach().clone() for parameter in net.parameters()]
    with left_alone(net), preserved(net):
        net(torch.arange(7))
        assert not all(map(torch.equal, before, net.parameters()))
    assert (net.calls, net.caches, net.bias, hasattr(net, "new")) == (0, {"cpu": []}, None, False)
    assert net.caches is caches


def test_an_unknown_policy_is_met_with_the_nearest():
    with (
        pytest.raises(ValueError, match="^batchnorm: unknown name 'batches'; did you mean 'batch'"),
        preserved(model(), batchnorm="batches"),
    ):
        pass


@pytest.mark.parametrize("before", [(False, True, True, False), (True, False, False, True)])
def test_kernels_repeat_and_keep_the_precision_inside(before, kernel_settings):
    kernel_settings(*before)
    with preserved(model()):
        assert kernel_settings() == (True, False, False, False)
    assert kernel_settings() == before
    with pytest.raises(RuntimeError, match="inside"), deterministic(tf32=True):
        assert kernel_settings() == (True, False, True, True)
        raise RuntimeError("inside")
    assert kernel_settings() == before


def precision():
    """Everything that torch tells of the precision of float32, under old and new names."""
    owners = {"cudnn": "allow_tf32", "cuda.matmul": "allow_tf32"}
    new = ("", "cuda.matmul", "cudnn", "cudnn.conv", "cudnn.rnn", "mkldnn", "mkldnn.matmul",
           "mkldnn.conv")  # fmt: skip
    reads = [(name, attribute) for name, attribute in owners.items()]
    reads += [(name, "fp32_precision") for name in new] * hasattr(torch.backends.cudnn, "conv")
    found = {"matmul": outcome(torch.get_float32_matmul_precision)}
    for name, attribute in reads:
        owner = operator.attrgetter(f"backends.{name}".rstrip("."))(torch)
        found[f"{name}.{attribute}"] = outcome(lambda owner=owner, a=attribute: getattr(owner, a))
    return found


def outcome(read):
    try:
        return read()
    except RuntimeError:
        return "names contradict each other"


SETTINGS = [
    "pass",
    "torch.set_float32_matmul_precision('medium')",
    "torch.set_float32_matmul_precision('high')",
    "torch.backends.cudnn.allow_tf32 = False",
    "torch.backends.cuda.matmul.allow_tf32 = True",
    *(
        f"torch.backends.{owner}fp32_precision = {precision!r}"
        for owner in ("", "cudnn.", "cudnn.conv.", "cudnn.rnn.", "cuda.matmul.")
        for precision in ("ieee", "tf32")
    ),
    "torch.backends.mkldnn.matmul.fp32_precision = 'bf16'",
]


def check_precision(setting):
    """Set something, measure, and compare what torch tells afterwards; in a process of its own."""
    exec(setting)
    before = precision()
    of_gpu = "cudnn.conv", "cudnn.rnn", "cuda.matmul"
    for tf32 in (False, True):
        with deterministic(tf32=tf32):
            inside = precision()
            for name, value in inside.items():
                owner, _, attribute = name.rpartition(".")
                if attribute == "fp32_precision":  # of the CPU's products nothing is changed
                    usual = "tf32" if tf32 else "ieee"
                    assert value == (usual if owner in of_gpu else before[name]), name
            for name in ("cudnn.allow_tf32", "cuda.matmul.allow_tf32"):
                # What could be read before can be read inside: nets and torch itself do.
                assert inside[name] == tf32 or isinstance(before[name], str), (name, inside)
        assert precision() == before


@pytest.fixture(scope="module")
def fresh(server):
    """Processes that have set nothing yet: some settings cannot be taken back."""
    with interrupted.server().Pool(1, maxtasksperchild=1) as pool:
        yield pool


@pytest.mark.parametrize("setting", SETTINGS)
def test_every_setting_of_precision_comes_back(setting, fresh):
    fresh.apply(check_precision, (setting,))
