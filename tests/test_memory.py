import platform
import subprocess
import sys

import pytest

from sciJEPA.memory import keep_freed_memory

FAULTS = """
import resource, torch
from sciJEPA.memory import keep_freed_memory
{call}
for _ in range(2):
    torch.ones(2**24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_any_c_library_gives_an_answer() -> None:
    assert keep_freed_memory() in (True, False)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_memory_that_is_kept_is_not_asked_for_again() -> None:
    def faults(call: str) -> int:
        command = [sys.executable, "-c", FAULTS.format(call=call)]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    # 64 MB each time: 20 * 2**14 pages of 4 KB where they come from the system, or fewer larger ones. Other allocations
    # may take a piece of what was freed, so that once or twice the next tensor does not fit there any more.
    assert faults("keep_freed_memory()") * 2 < faults("")
