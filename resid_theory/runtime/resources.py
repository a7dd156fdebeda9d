"""Resources of the machine: free memory, and its rate of matrix products."""

import os
import sys
import time
from functools import cache

import torch

from resid_theory._check import check_within

_NO_MEMORY = (
    "can't allocate memory",
    "CUDA error: out of memory",
    "ALLOC_FAILED",  # cuBLAS, cuDNN, cuSOLVER, cuFFT
    "ALLOCATION_FAILED",  # cuDNN 9
)
# What these libraries say, among other causes, where there is no room for a kernel or a handle.
_PERHAPS_NO_MEMORY = (
    "CUBLAS_STATUS_NOT_INITIALIZED",
    "CUDNN_STATUS_INTERNAL_ERROR",
    "CUDNN_STATUS_NOT_INITIALIZED",
    "CUSOLVER_STATUS_INTERNAL_ERROR",
    "CUSOLVER_STATUS_NOT_INITIALIZED",
    "unable to find an engine",
)
_ROOM = 1 << 30  # bytes; loading the kernels of cuDNN takes half of it


def check_device(argument: str, name: str | torch.device, *, here: bool = True) -> torch.device:
    """The device of a name; a ValueError if torch does not know it, or, if here, cannot use it."""
    try:
        device = torch.device(name)
        if here:
            torch.zeros(1, device=device).item()  # on "meta" there are no values
        return device
    except (AssertionError, NotImplementedError, RuntimeError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"{argument}: got {str(name)!r}, which torch cannot use: {reason}; this machine has "
            f"'cpu' and {torch.cuda.device_count()} CUDA devices"
        ) from error


def allowed_bytes(memory_limit: int | None, device: torch.device | None = None) -> int:
    """The bytes that a caller allows, by default those that are free."""
    if memory_limit is None:
        return available_bytes(device)
    check_within("memory_limit", memory_limit, 0, float("inf"), "[)")
    return memory_limit


def available_bytes(device: torch.device | None = None) -> int:
    """Free memory of the machine or its container, in bytes; or of a GPU."""
    if device is not None and device.type == "cuda":
        # What torch keeps for reuse counts as free.
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + kept
    free = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            lines = dict(line.split(":", 1) for line in file)
        free.append(1024 * int(lines["MemAvailable"].split()[0]))
        with open("/sys/fs/cgroup/memory.max", encoding="ascii") as file:
            most = file.read().strip()
        with open("/sys/fs/cgroup/memory.current", encoding="ascii") as file:
            free.append(int(most) - int(file.read()))  # a ValueError without a limit, "max"
    except (OSError, KeyError, ValueError):
        pass  # not Linux, or no such limit: the smallest of what is known decides
    return max(0, min(free))


def peak_bytes(device: torch.device) -> int:
    """Most memory that this process has used: of a GPU's own, or of the machine's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource  # not on Windows

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def readable_bytes(count: int) -> str:
    """A number of bytes in GiB or MiB."""
    return f"{count / 2**30:.1f} GiB" if count >= 1 << 28 else f"{count / 2**20:.1f} MiB"


def is_out_of_memory(error: BaseException) -> bool:
    """True if an error, also of the CPU's allocator or a GPU's library, is lack of memory."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    if not isinstance(error, RuntimeError):
        return False
    if any(words in str(error) for words in _NO_MEMORY):
        return True
    return any(words in str(error) for words in _PERHAPS_NO_MEMORY) and _is_full()


def _is_full() -> bool:
    """True if the present GPU has hardly any memory that torch does not hold."""
    try:
        return int(torch.cuda.mem_get_info()[0]) < _ROOM
    except (AssertionError, RuntimeError):  # there is none, or it answers nothing after its error
        return False


def clock(device: torch.device) -> float:
    """Seconds of a clock, read when the device has done all that was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@cache
def matmul_rate(device: torch.device) -> float:
    """Floating-point operations per second of a float64 matrix product, measured once."""
    size = 2000 if device.type == "cuda" else 400  # a GPU is idle between small ones
    a = torch.ones(size, size, dtype=torch.float64, device=device)
    a @ a  # starts the libraries
    start = clock(device)
    for _ in range(5):
        a @ a
    return 5 * 2 * size**3 / (clock(device) - start)
