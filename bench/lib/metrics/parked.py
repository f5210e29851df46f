"""Memory of a request that waits."""

import time
from contextlib import ExitStack
from functools import partial

from lib import figure, peers, process
from lib.client import Connection
from lib.failure import Failure
from lib.peers import Field, Peer, Site
from lib.report import Section
from lib.scale import Scale

IDLE_TIMEOUT_S = 10.0

SETTLE_S = 2.0
"""How long requests have waited when the memory is taken: who gives back what a waiting one need not have, has done so."""

TEXT = """Many requests are parked in a wait at once. From the server's memory (PSS) two seconds later, its memory with
the same connections open and idle is taken, each of which had one answer before. All requests are answered in the end."""


def measure(field: Field, scale: Scale) -> Section:
    """Every server that runs scripts."""
    samplers = {peer: partial(_sample, peer, scale) for peer in field.present if peer is not peers.BARE}
    title, unit = f"Memory: a parked request, {scale.n_parked:,} at once", "KiB per waiting request"
    note = ("what runs a request", lambda peer: peer.vm)
    return figure.compare("parked", title, TEXT, unit, samplers, scale.memory_rounds, note)


def _sample(peer: Peer, scale: Scale) -> float:
    site = Site("park", wait_s=scale.wait_s, n_requests=scale.n_parked)
    with peer.serving(site) as server, ExitStack() as stack:
        connections = [stack.enter_context(Connection(server.port)) for _ in range(scale.n_parked)]
        for connection in connections:
            connection.get("/hello")
        process.wait_until_idle(server.pid, IDLE_TIMEOUT_S)
        idle_kib = process.pss_kib(server.pid)
        for connection in connections:
            connection.send("/wait")
        time.sleep(SETTLE_S)
        process.wait_until_idle(server.pid, scale.wait_s)
        parked_kib = process.pss_kib(server.pid)
        if connections[0].is_answered():
            raise Failure("the first request was answered before the last was parked")
        for connection in connections:
            connection.receive()
    return (parked_kib - idle_kib) / scale.n_parked
