"""The smallest request: what a script host costs before the script does anything."""

from lib import load
from lib.load import Load
from lib.peers import Field, Peer, Site
from lib.report import Section
from lib.scale import Scale

N_CONNECTIONS = 16

TEXT = f"""`GET /hello`, answered with `hello /hello`, on {N_CONNECTIONS} connections that are kept open. CPU is user
and system time of the server's process tree for one request, with the kernel's work for the loopback, without
the load generator's. Latency is that of a full server: each connection sends its next request at once."""

SINGLE_TEXT = """The same on one connection: the server sleeps between two requests, and waking its threads is a part of
each. A host with few requests pays this; one with many pays the figure above."""


def measure(field: Field, scale: Scale) -> Section:
    """Every server that is there, busy."""
    return _measure("hello", f"Hello, {N_CONNECTIONS} connections", TEXT, N_CONNECTIONS, field, scale)


def measure_single(field: Field, scale: Scale) -> Section:
    """Every server that is there, with one request at a time."""
    return _measure("single", "Hello, one at a time", SINGLE_TEXT, 1, field, scale)


def _measure(name: str, title: str, text: str, n_connections: int, field: Field, scale: Scale) -> Section:
    def sample(peer: Peer) -> Load:
        with peer.serving(Site("hello")) as server:
            return load.measure(server, "/hello", n_connections, scale)

    return load.compare(name, title, text, field.present, sample, scale)
