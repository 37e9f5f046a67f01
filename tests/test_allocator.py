"""Memory that tensors free stays with the process: the law behind a tenth of a network call's
time."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
from d2.allocator import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
def faults(size):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bytearray(size)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults(48 << 20)
print(faults(48 << 20))
"""


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="other C libraries keep to their own rules"
)
def test_a_block_that_was_freed_is_given_out_again_without_page_faults() -> None:
    def count(how: str) -> int:
        return int(
            subprocess.run(
                [sys.executable, "-c", FAULTS, how], check=True, capture_output=True
            ).stdout
        )

    assert count("kept") < 100 < 1000 < count("by default")
