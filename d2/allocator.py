"""How the C library treats memory that is freed."""

from __future__ import annotations

import ctypes
import platform

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
BLOCK = 256 * 2**20  # bytes; larger blocks still go back to the kernel as soon as they are freed
KEPT = 2**30  # bytes at the end of the heap that stay with the process


def keep_freed_memory() -> None:
    """Tell glibc to keep blocks of up to 256 MiB when tensors free them; elsewhere nothing is done.

    By default a block of some MiB is mapped anew for every tensor, and each of its pages is a fault
    that the kernel answers with zeros: up to 11 % of a network call on a CPU. No result depends on
    it.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, BLOCK)
        libc.mallopt(M_TRIM_THRESHOLD, KEPT)
