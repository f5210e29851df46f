"""Very many tenants in one host."""

from functools import partial

from lib import process
from lib.client import Connection
from lib.failure import Failure
from lib.peers import NEOC, NEOC_TENANT, Field, Peer, Site
from lib.report import Section
from lib.rounds import interleave, shown
from lib.scale import Scale

IDLE_TIMEOUT_S = 20.0

TEXT = """One host loads all these tenants; then each is asked once and must answer. Memory is PSS, before and after
they were asked."""


def measure(field: Field, scale: Scale) -> Section:
    """neoc alone: no other peer is made for this."""
    entries = {peer.name: partial(_sample, peer, scale.n_crowd) for peer in field.among(NEOC, NEOC_TENANT)}
    outcome = interleave("crowd", 1, entries)
    return Section(
        title=f"A host with {scale.n_crowd:,} tenants",
        text=TEXT,
        columns=["server", "s to the first answer", "MiB loaded", "MiB after all were asked"],
        rows=[[name, *map(shown, sample)] for name, samples in outcome.samples.items() for sample in samples],
        failed=outcome.failed,
    )


def _sample(peer: Peer, n_tenants: int) -> tuple[float, float, float]:
    """Seconds to the first answer, MiB loaded, MiB after all were asked."""
    with peer.serving(Site("hello", n_tenants=n_tenants)) as server:
        process.wait_until_idle(server.pid, IDLE_TIMEOUT_S)
        loaded_kib = process.pss_kib(server.pid)
        with Connection(server.port) as connection:
            for number in range(1, n_tenants):
                if connection.get(f"/tenant{number}") != f"hello /tenant{number}":
                    raise Failure(f"tenant {number} gave another answer")
        return server.start_s, loaded_kib / 1024, process.pss_kib(server.pid) / 1024
