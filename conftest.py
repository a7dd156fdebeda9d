"""What doctests and tests share: names, one thread, a plotting backend without a window, speed."""

import gc
import os
import sys

import pytest

# Before anything imports matplotlib; set, not defaulted, so that a user's choice opens no window.
os.environ["MPLBACKEND"] = "Agg"
# Before anything imports torch: the matrices here are small, and other processes test beside this.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Otherwise each process that a test starts compiles the library again, which takes seconds.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """What is collected stands until the end: no search for garbage need look at it."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(autouse=True)
def names_of_doctests(doctest_namespace):
    """Give every doctest ``torch`` and ``rt``, as a reader's session would have them."""
    import torch

    import resid_theory as rt

    doctest_namespace.update(torch=torch, rt=rt)
