"""Memory of the C library, kept when it is freed."""

import ctypes
import os

# Of <malloc.h>.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4


def keep_freed_memory() -> None:
    """Keep freed memory for the next tensor (glibc), where the environment asks nothing else.

    By default it gives tensors beyond 32 MB back at once. The kernel then clears every page of the
    next one, which took half the time of Hessian products of convolutional nets. The setting
    belongs to the process: programs of this package call this, ``import resid_theory`` does not.
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # no glibc
        return
    set_option(_MMAP_MAX, 0)
    set_option(_TRIM_THRESHOLD, 2**31 - 1)
