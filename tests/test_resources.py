"""Memory, devices and clocks: what a pretended machine says of itself."""

import io
import os
import resource
import sys
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from resid_theory.runtime import resources

MEMORY = "MemTotal:  900 kB\nMemAvailable:    64 kB\nHugePages: of 1: 2\n"
GPU = torch.device("cuda", 1)


@pytest.mark.parametrize(
    ("most", "now", "memory", "pages", "free"),
    [
        ("50000\n", "20000\n", MEMORY, 1000, 30_000),
        ("max\n", "20000\n", MEMORY, 1000, 64 * 1024),
        (None, None, MEMORY, 1000, 64 * 1024),
        ("99999999\n", "0\n", MEMORY, 10, 10 * 4096),
        ("5000\n", "6000\n", MEMORY, 1000, 0),
        (None, None, None, 1000, 1000 * 4096),
    ],
    ids=["limit", "no limit", "no groups", "small", "beyond", "no files"],
)
def test_free_memory_is_the_least_that_is_known(monkeypatch, most, now, memory, pages, free):
    files = {"/proc/meminfo": memory, "/sys/fs/cgroup/memory.max": most,
             "/sys/fs/cgroup/memory.current": now}  # fmt: skip

    def opened(name, encoding):
        if files[name] is None:
            raise FileNotFoundError(name)
        return io.StringIO(files[name])

    monkeypatch.setattr(resources, "open", opened, raising=False)
    sizes = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": pages}
    monkeypatch.setattr(os, "sysconf", sizes.__getitem__)
    assert resources.available_bytes() == resources.available_bytes(torch.device("cpu")) == free


def test_free_memory_of_a_gpu_includes_what_torch_keeps(monkeypatch):
    asked = []

    def says(value):
        return lambda device: asked.append(device) or value

    monkeypatch.setattr(torch.cuda, "mem_get_info", says((100, 1000)))
    monkeypatch.setattr(torch.cuda, "memory_reserved", says(30))
    monkeypatch.setattr(torch.cuda, "memory_allocated", says(10))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", says(77))
    assert (resources.available_bytes(GPU), resources.peak_bytes(GPU)) == (120, 77)
    assert asked == [GPU] * 4


@pytest.mark.parametrize(("platform", "unit"), [("linux", 1024), ("darwin", 1)])
def test_the_peak_is_in_bytes_on_every_system(monkeypatch, platform, unit):
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(resource, "getrusage", lambda who: SimpleNamespace(ru_maxrss=5))
    assert resources.peak_bytes(torch.device("cpu")) == 5 * unit


@pytest.mark.parametrize(
    ("count", "said"),
    [(1 << 20, "1.0 MiB"), ((1 << 28) - 1, "256.0 MiB"), (1 << 28, "0.2 GiB"),
     (3 << 30, "3.0 GiB")],
)  # fmt: skip
def test_bytes_are_read_in_mebibytes_or_gibibytes(count, said):
    assert resources.readable_bytes(count) == said


class Flops(TorchDispatchMode):
    """Counts the operations of matrix products."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.mm.default:
            self.count += 2 * args[0].shape[0] * args[0].shape[1] * args[1].shape[1]
        return func(*args, **(kwargs or {}))


def test_the_rate_is_what_is_computed_between_two_looks_at_the_clock(monkeypatch):
    looks = []

    def clock(device):
        looks.append(flops.count)
        return 3.0 * len(looks)

    monkeypatch.setattr(resources, "clock", clock)
    with Flops() as flops:
        rate = resources.matmul_rate.__wrapped__(torch.device("cpu"))
    assert len(looks) == 2 and 0 < looks[0] < looks[1]  # the first product starts the libraries
    assert rate == (looks[1] - looks[0]) / 3.0


@pytest.mark.parametrize(("device", "size"), [(torch.device("cpu"), 400), (GPU, 2000)])
def test_products_are_as_large_as_the_device_needs(monkeypatch, device, size):
    looks, asked, matrix = iter((1.0, 3.0)), [], torch.eye(2)
    monkeypatch.setattr(resources, "clock", lambda device: next(looks))
    monkeypatch.setattr(torch, "ones", lambda *shape, **how: asked.append((shape, how)) or matrix)
    assert resources.matmul_rate.__wrapped__(device) == 5 * size**3
    assert asked == [((size, size), {"dtype": torch.float64, "device": device})]


def test_a_clock_waits_for_its_device(monkeypatch):
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    assert resources.clock(torch.device("cpu")) <= resources.clock(GPU)
    assert waited == [GPU]


def test_a_device_elsewhere_is_taken_by_its_name():
    assert resources.check_device("device", "cuda:99", here=False) == torch.device("cuda:99")
    with pytest.raises(
        ValueError, match="^device: got 'gpu', which torch cannot use: .+; this mach"
    ):
        resources.check_device("device", "gpu", here=False)


def test_a_device_is_to_be_here_unless_it_need_not():
    with pytest.raises(ValueError, match="^device: got 'meta', which torch cannot use: "):
        resources.check_device("device", "meta")
    with pytest.raises(ValueError, match="^device: got 'cuda:99', which torch cannot use: "):
        resources.check_device("device", "cuda:99")


def test_of_a_device_that_fails_the_first_line_is_told(monkeypatch):
    def failing(*_, **__):
        raise RuntimeError("no driver\nCompile with more words")

    monkeypatch.setattr(torch, "zeros", failing)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    says = "^d: got 'cpu', .* use: no driver; this machine has 'cpu' and 3 CUDA devices$"
    with pytest.raises(ValueError, match=says):
        resources.check_device("d", torch.device("cpu"))
