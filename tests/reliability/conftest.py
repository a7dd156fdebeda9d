"""Calls are those of a user, whose default is float32."""

import pytest
import torch
from trials import draw  # noqa: F401  (a fixture)


@pytest.fixture(autouse=True)
def float32(float64):
    torch.set_default_dtype(torch.float32)
