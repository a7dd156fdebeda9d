"""What doctests and tests share: names, one thread, and a plotting backend without a window."""

import os

import pytest

# Before anything imports matplotlib; set, not defaulted, so that a user's choice opens no window.
os.environ["MPLBACKEND"] = "Agg"
# Before anything imports torch: the matrices here are small, and other processes test beside this.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def names_of_doctests(doctest_namespace):
    """Give every doctest ``torch`` and ``rt``, as a reader's session would have them."""
    import torch

    import resid_theory as rt

    doctest_namespace.update(torch=torch, rt=rt)
