"""Memory of a tenant that is loaded and that nobody calls."""

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

from lib import figure, peers, process
from lib.peers import Field, Peer, Site
from lib.report import Section
from lib.scale import Scale

IDLE_TIMEOUT_S = 20.0

TEXT = """A server with many tenants, less one with a single tenant, for each tenant more. Memory is PSS: a page that
several processes share counts in parts. Where one process holds one tenant only, a process is what a tenant costs."""

IN_ONE_PROCESS = (peers.NEOC, peers.NEOC_TENANT, peers.SHARED, peers.WORKERD)
A_PROCESS_EACH = (peers.NGINX, peers.TARANTOOL, peers.DENO, peers.LUNE)


def measure(field: Field, scale: Scale) -> Section:
    """Every server, in the way that it holds tenants."""
    samplers: dict[Peer, Callable[[], float]] = {}
    for peer in field.among(*IN_ONE_PROCESS):
        samplers[peer] = partial(_in_one_process, peer, scale.n_tenants)
    for peer in field.among(*A_PROCESS_EACH):
        samplers[peer] = partial(_a_process_each, peer, scale.n_processes)

    def way(peer: Peer) -> str:
        if peer in IN_ONE_PROCESS:
            return f"{scale.n_tenants} in one process"
        return f"{scale.n_processes}, a process each"

    title, unit = "Memory: a loaded tenant", "KiB per tenant"
    return figure.compare("tenants", title, TEXT, unit, samplers, scale.memory_rounds, ("tenants", way))


def _in_one_process(peer: Peer, n_tenants: int) -> float:
    return (_pss_kib(peer, Site("hello", n_tenants=n_tenants)) - _pss_kib(peer, Site("hello"))) / (n_tenants - 1)


def _pss_kib(peer: Peer, site: Site) -> int:
    with peer.serving(site) as server:
        process.wait_until_idle(server.pid, IDLE_TIMEOUT_S)
        return process.pss_kib(server.pid)


def _a_process_each(peer: Peer, n_tenants: int) -> float:
    """All are read while all run, so that the pages that they share are shared by as many."""
    with ExitStack() as stack:
        servers = [stack.enter_context(peer.serving(Site("hello"))) for _ in range(n_tenants)]
        for server in servers:
            process.wait_until_idle(server.pid, IDLE_TIMEOUT_S)
        return sum(process.pss_kib(server.pid) for server in servers) / n_tenants
