"""Memory that a step has freed is kept for the next step, which asks for the same again."""

import ctypes

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
