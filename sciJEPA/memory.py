"""Memory of a step: what it has freed is kept for the next one, and what a GPU needs lies where it can fetch it."""

import ctypes
import functools

import torch
from torch import Tensor

MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1
"""Numbers of glibc's `mallopt`."""


def keep_freed_memory() -> bool:
    """Let this process keep freed memory, up to 2 GB, instead of handing every large tensor back to the system.

    Each page that comes back from the system is zeroed first, which took a fifth of a training step on a CPU. Concerns
    the rest of the process and cannot be undone; where the C library is not glibc nothing happens.

    Returns
    -------
    bool
        Whether the C library has agreed.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library, or Windows
        return False
    return bool(mallopt(MMAP_THRESHOLD, 2**30) and mallopt(TRIM_THRESHOLD, 2**31 - 1))


def moved(tensor: Tensor, device: torch.device | str) -> Tensor:
    """A tensor on another device; a GPU fetches it while it still computes what it was given before."""
    if torch.device(device).type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    here, copies = torch.cuda.current_stream(device), _copies(str(device))
    with torch.cuda.stream(copies):
        fetched = tensor.pin_memory().to(device, non_blocking=True)
    here.wait_stream(copies)
    fetched.record_stream(here)  # or its memory could be given away before it is read
    return fetched


@functools.cache
def _copies(device: str) -> torch.cuda.Stream:
    """The queue of copies to a GPU."""
    return torch.cuda.Stream(device)
