"""Memory of a tenant that is loaded and that nobody calls."""

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

from lib import peers, process
from lib.peers import Field, Peer, Site
from lib.report import Bar, Bars, Section
from lib.rounds import interleave, median, shown, spread
from lib.scale import Scale

IDLE_TIMEOUT_S = 20.0

TEXT = """A server with many tenants, less one with a single tenant, for each tenant more. Memory is PSS: a page that
several processes share counts in parts. Where one process holds one tenant only, a process is what a tenant costs."""

IN_ONE_PROCESS = (peers.NEOC, peers.NEOC_TENANT, peers.SHARED, peers.WORKERD)
A_PROCESS_EACH = (peers.NGINX, peers.TARANTOOL, peers.DENO, peers.LUNE)


def measure(field: Field, scale: Scale) -> Section:
    """Every server, in the way that it holds tenants."""
    entries: dict[str, Callable[[], float]] = {}
    for peer in field.among(*IN_ONE_PROCESS):
        entries[peer.name] = partial(_in_one_process, peer, scale.n_tenants)
    for peer in field.among(*A_PROCESS_EACH):
        entries[peer.name] = partial(_a_process_each, peer, scale.n_processes)
    outcome = interleave("tenants", scale.rounds, entries)
    present = [peer for peer in field.among(*IN_ONE_PROCESS, *A_PROCESS_EACH) if peer.name in outcome.samples]
    figures = {peer.name: outcome.samples[peer.name] for peer in present}
    bars = [Bar(peer.name, median(figures[peer.name], float), peer.is_ours) for peer in present]
    return Section(
        title="Memory: a loaded tenant",
        text=TEXT,
        columns=["server", "KiB per tenant", "least to most", "tenants", "in"],
        rows=[
            [bar.label, shown(bar.value), spread(figures[bar.label], float), *_way(peer, scale)]
            for peer, bar in zip(present, bars)
        ],
        panels=[Bars("tenants: KiB per loaded tenant", bars)],
        failed=outcome.failed,
    )


def _way(peer: Peer, scale: Scale) -> tuple[str, str]:
    if peer in IN_ONE_PROCESS:
        return str(scale.n_tenants), "one process"
    return str(scale.n_processes), "a process each"


def _in_one_process(peer: Peer, n_tenants: int) -> float:
    return (_pss_kib(peer, Site("hello", n_tenants=n_tenants)) - _pss_kib(peer, Site("hello"))) / (n_tenants - 1)


def _pss_kib(peer: Peer, site: Site) -> int:
    with peer.serving(site) as server:
        process.wait_until_idle(server.pid, IDLE_TIMEOUT_S)
        return process.pss_kib(server.pid)


def _a_process_each(peer: Peer, n_tenants: int) -> float:
    """Both counts are read while all run, so that the pages that they share are shared by as many."""
    with ExitStack() as stack:
        servers = [stack.enter_context(peer.serving(Site("hello"))) for _ in range(n_tenants)]
        for server in servers:
            process.wait_until_idle(server.pid, IDLE_TIMEOUT_S)
        return sum(process.pss_kib(server.pid) for server in servers) / n_tenants
