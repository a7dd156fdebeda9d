"""float64 by default, a device to choose, a seeded generator.

torch is imported late: the process of pytest-xdist that hands out the tests reads this, too.
"""

import atexit
import faulthandler
import gc
import importlib
import os
import sys
from contextlib import contextmanager

import fast
import pytest
import trials


def pytest_addoption(parser):
    parser.addoption(
        "--fast", action="store_true", help="a minute of tests for every save (tests/fast.py)"
    )
    parser.addoption(
        "--device",
        choices=("cpu", "cuda", "pretended"),
        default="cpu",
        help="where tests put their tensors; a pretended GPU computes on the CPU, refuses what a "
        "GPU refuses, and runs the tests that choose a device",
    )
    parser.addoption(
        "--only-device",
        action="store_true",
        help="only the tests that choose a device; the others compute on the CPU whatever it is",
    )
    parser.addoption(
        "--trials",
        choices=("quick", "full"),
        default="quick",
        help="how often faults are injected (-m reliability); full takes an hour and writes "
        "docs/reliability.md",
    )


def pytest_configure(config):
    full = config.getoption("--trials") == "full"
    config.pluginmanager.register(trials.Plugin(full), "trials")
    if full and config.getoption("numprocesses", None):
        raise pytest.UsageError("--trials full: trials are counted in one process; leave out -n")
    if config.getoption("--device") == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise pytest.UsageError(
                "--device cuda: torch finds no CUDA device here; leave the option out to run on "
                "the CPU"
            )
    config.option.loadscopereorder = False  # xdist's order is by the number of tests in a file
    if hasattr(config, "workerinput"):
        atexit.register(_end, os.getpid())
    gc.set_threshold(20_000)  # from 700: half a million objects of imports and tests stay anyway
    # What a killed process has written is not lost, and no test cuts the power: no disk is waited
    # for, but by processes of their own.
    os.fsync = os.fstat


def _end(worker):
    """End a worker of pytest-xdist, but no fork of it: a million objects need not be freed."""
    if os.getpid() == worker:
        os._exit(0)


def pytest_sessionfinish(session):
    """Where `make test` bounds tests, their processes have no longer to end than a test has."""
    config = session.config
    if config.pluginmanager.hasplugin("faulthandler"):
        if (seconds := float(config.getini("faulthandler_timeout"))) > 0:
            faulthandler.dump_traceback_later(seconds, exit=True, file=sys.__stderr__)


def pytest_ignore_collect(collection_path, config):
    return config.getoption("--fast") and fast.is_left_out(collection_path) or None


def pytest_collection_modifyitems(config, items):
    items.sort(key=lambda item: item.path.stem not in fast.FILES)  # the long ones first
    if config.getoption("--fast"):
        items[:], left = fast.select(items)
        config.hook.pytest_deselected(items=left)
    if unstable := [item.name for item in items if " at 0x" in item.name]:
        raise pytest.UsageError(f"names differ from process to process, give ids: {unstable}")
    device = config.getoption("--device")
    if device == "pretended" or config.getoption("--only-device"):
        choosing = [item for item in items if _chooses_a_device(item)]
        config.hook.pytest_deselected(items=[item for item in items if item not in choosing])
        items[:] = choosing
    if device == "cuda":
        return
    for item in items:
        if _needs_a_gpu(item):
            item.add_marker(pytest.mark.skip(reason="needs --device cuda"))


def _chooses_a_device(item):
    fixtures = getattr(item, "fixturenames", ())  # a doctest has none
    return not {"device", "cuda"}.isdisjoint(fixtures) or _needs_a_gpu(item)


def _needs_a_gpu(item):
    return item.get_closest_marker("gpu") is not None  # keywords hold names of folders, too


@pytest.fixture(scope="session")
def server():
    """Starts the server of processes; what makes processes of ``interrupted`` asks for it."""
    if hasattr(os, "fork"):
        importlib.import_module("interrupted").server()


@pytest.fixture(scope="session", autouse=True)
def beginning(request):
    """The server of processes starts, if a test needs it, before tests change what it inherits."""
    import torch

    if any("server" in getattr(item, "fixturenames", ()) for item in request.session.items):
        request.getfixturevalue("server")
    torch.backends.cudnn.allow_tf32 = False  # what tests compute themselves is to be float32


@pytest.fixture(autouse=True)
def float64():
    """float64 by default in each test, where closed forms agree to round-off; a fixed seed."""
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    # torch's own modules draw their first weights from the global generator. torch.manual_seed
    # would keep a stack trace for each GPU that is not there.
    torch.default_generator.manual_seed(0)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(0)
    yield
    torch.set_default_dtype(before)


@pytest.fixture
def device(request):
    """The device of ``--device``."""
    import torch
    from fake_cuda import pretended

    chosen = request.config.getoption("--device")
    if chosen != "pretended":
        yield torch.device(chosen)
        return
    with pretended():
        yield torch.device("cuda")


@pytest.fixture
def cuda(request):
    """The GPU of ``--device cuda``, otherwise the pretended one."""
    import torch
    from fake_cuda import pretended

    if request.config.getoption("--device") == "cuda":
        yield torch.device("cuda")
        return
    with pretended():
        yield torch.device("cuda")


@pytest.fixture
def generator():
    """A generator on the CPU, seeded alike for every test."""
    import torch

    return torch.Generator().manual_seed(0)


class Bar:
    """A progress bar that keeps what it is told."""

    def __init__(self, made, **options):
        self.options, self.done = options, []
        made.append(self)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.options["done"] = self.done

    def update(self, count):
        self.done.append(count)


@pytest.fixture
def bars(monkeypatch):
    """Replaces the progress bars of modules, and returns the list of those that are made."""

    def replaced(*modules):
        made = []
        for module in modules:
            monkeypatch.setattr(module, "tqdm", lambda **options: Bar(made, **options))
        return made

    return replaced


@pytest.fixture(scope="session")
def live_folder(tmp_path_factory):
    """Where tests and notebooks share quick records, in all processes of pytest-xdist."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "live"


@pytest.fixture
def left_alone():
    """A context in which a net and torch's random state must stay as they are, to the bit."""
    import torch

    def state(net):
        grads = [torch.zeros(0) if p.grad is None else p.grad for p in net.parameters()]
        tensors = [t.detach().clone() for t in (*net.parameters(), *net.buffers(), *grads)]
        flags = [p.requires_grad for p in net.parameters()]
        flags += [(m.training, *map(len, (m._forward_hooks, m._forward_pre_hooks,
                                          m._backward_hooks, m._backward_pre_hooks)))
                  for m in net.modules()]  # fmt: skip
        return [*tensors, torch.get_rng_state()], flags

    @contextmanager
    def check(net):
        before = state(net)
        yield
        after = state(net)
        torch.testing.assert_close(after[0], before[0], rtol=0, atol=0, equal_nan=True)
        assert after[1] == before[1]

    return check


@pytest.fixture
def kernel_settings():
    """cuDNN's deterministic, benchmark, TF32, and TF32 of products: read, or set if given."""
    import torch

    owners = [torch.backends.cudnn] * 3 + [torch.backends.cuda.matmul]
    names = ["deterministic", "benchmark", "allow_tf32", "allow_tf32"]

    def settings(*given):
        # Not monkeypatch: the owner of the last one makes its attributes up.
        for owner, name, value in zip(owners, names, given, strict=False):
            setattr(owner, name, value)
        return tuple(getattr(owner, name) for owner, name in zip(owners, names, strict=True))

    before = settings()
    yield settings
    settings(*before)


@pytest.fixture
def conv_net(generator):
    """A small net for images (1, 3, 3), whose BatchNorm has seen some."""
    import torch
    from torch import nn

    net = nn.Sequential(
        nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3)
    ).double()
    net(torch.randn(9, 1, 3, 3, generator=generator, dtype=torch.float64))
    return net
