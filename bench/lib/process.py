"""What the kernel knows about a process and all its descendants."""

import os
import time
from pathlib import Path

from lib.failure import Failure

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")

QUIET_CPU_S = 0.02
"""Computing time in half a second below which a tree counts as idle."""


def cpu_s(root: int) -> float:
    """User and system time that the tree has used, in seconds, its ended children included.

    The kernel counts in steps of 10 ms: measure differences of a second and more.
    """
    # After the name, which may hold spaces: utime and stime are fields 14 and 15 of the file, those of
    # children that were waited for 16 and 17.
    return sum(sum(map(int, stat[11:15])) for stat in _tree(root).values()) / TICKS_PER_SECOND


def pss_kib(root: int) -> int:
    """Memory of the tree in KiB, each shared page divided by the number of its users."""
    return sum(_pss_kib(pid) for pid in _tree(root))


def wait_until_idle(root: int, timeout_s: float) -> None:
    """Waits until the tree has stopped computing."""
    deadline = time.monotonic() + timeout_s
    before = cpu_s(root)
    while time.monotonic() < deadline:
        time.sleep(0.5)
        now = cpu_s(root)
        if now - before <= QUIET_CPU_S:
            return
        before = now
    raise Failure("it did not come to rest")


def _tree(root: int) -> dict[int, list[str]]:
    """Every live process below `root` and itself: the fields of its stat file after the name."""
    stats = {int(entry.name): fields for entry in Path("/proc").glob("[0-9]*") if (fields := _stat(entry))}
    if root not in stats:
        raise Failure("the process has ended")
    found = [root]
    for parent in found:
        found.extend(pid for pid, fields in stats.items() if int(fields[1]) == parent)
    return {pid: stats[pid] for pid in found}


def _stat(entry: Path) -> list[str] | None:
    try:
        return (entry / "stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


def _pss_kib(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
