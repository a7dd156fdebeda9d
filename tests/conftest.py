"""float64 by default, a device to choose, a seeded generator."""

import pytest
import torch


def pytest_addoption(parser):
    parser.addoption(
        "--device", choices=("cpu", "cuda"), default="cpu", help="where tests put their tensors"
    )


def pytest_configure(config):
    if config.getoption("--device") == "cuda" and not torch.cuda.is_available():
        raise pytest.UsageError(
            "--device cuda: torch finds no CUDA device here; leave the option out to run on the CPU"
        )


def pytest_collection_modifyitems(config, items):
    if config.getoption("--device") == "cuda":
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs --device cuda"))


@pytest.fixture(autouse=True)
def float64():
    """float64 by default in each test, where closed forms agree to round-off; a fixed seed."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)  # torch's own modules draw their first weights from the global generator
    yield
    torch.set_default_dtype(before)


@pytest.fixture
def device(request):
    """The device of ``--device``."""
    return torch.device(request.config.getoption("--device"))


@pytest.fixture
def generator():
    """A generator on the CPU, seeded alike for every test."""
    return torch.Generator().manual_seed(0)
