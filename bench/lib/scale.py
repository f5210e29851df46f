"""How much is measured: the full run, and the quick one that only shows that all of it works."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """Counts and times of one run. Times are in seconds."""

    rounds: int
    """How often each entry is measured; the report has the median of them."""
    memory_rounds: int
    """The same for memory, which varies less."""
    warm_s: int
    """Load before each measurement, so that compilers and caches are done."""
    load_s: int
    """Length of each measured load."""
    n_tenants: int
    """Tenants in the loaded host; the other has one."""
    n_processes: int
    """The same for peers that need a process for each tenant."""
    n_crowd: int
    """Tenants of the host that has very many."""
    n_parked: int
    """Requests parked at once."""
    wait_s: int
    """How long they stay parked: long enough to send and to measure them all."""
    n_starts: int
    """Starts of each program."""
    probe_s: int
    """Length of each probe beside the spinning tenants, at 10 requests a second."""


FULL = Scale(
    rounds=5,
    memory_rounds=3,
    warm_s=1,
    load_s=3,
    n_tenants=200,
    n_processes=8,
    n_crowd=10_000,
    n_parked=2000,
    wait_s=10,
    n_starts=15,
    probe_s=10,
)

QUICK = Scale(
    rounds=1,
    memory_rounds=1,
    warm_s=1,
    load_s=1,
    n_tenants=20,
    n_processes=3,
    n_crowd=200,
    n_parked=50,
    wait_s=4,
    n_starts=2,
    probe_s=3,
)
