"""A handler that calls a slow upstream: many requests wait, few compute."""

from lib import load, peers
from lib.load import Load
from lib.peers import Field, Peer, Site
from lib.report import Section
from lib.scale import Scale

N_CONNECTIONS = 256
DELAY_MS = 50

TEXT = f"""Each request calls an upstream on the loopback that answers after {DELAY_MS} ms; on
{N_CONNECTIONS} connections at most {N_CONNECTIONS * 1000 // DELAY_MS:,} requests a second are possible. The upstream
is a process of its own and not counted. nginx-lua calls it through a subrequest to its own proxy, tarantool through
its curl client."""


def measure(field: Field, scale: Scale) -> Section:
    """Every server but the one without scripts."""
    present = [peer for peer in field.present if peer is not peers.BARE]
    with peers.upstream_serving(DELAY_MS) as upstream:
        site = Site("outbound", upstream_port=upstream.port, n_requests=N_CONNECTIONS)

        def sample(peer: Peer) -> Load:
            with peer.serving(site) as server:
                return load.measure(server, "/outbound", N_CONNECTIONS, scale)

        title = f"Outbound: an upstream of {DELAY_MS} ms, {N_CONNECTIONS} connections"
        return load.compare("outbound", title, TEXT, present, sample, scale)
