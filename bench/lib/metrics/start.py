"""From the start of a server to its first answer."""

from functools import partial

from lib import figure
from lib.peers import Field, Peer, Site
from lib.report import Section
from lib.scale import Scale

TEXT = """From the start of the process, with one tenant, to the first answer, by the clock. What a program keeps
between two starts (neoc: its compiled image) is there: an earlier start made it."""


def measure(field: Field, scale: Scale) -> Section:
    """Every server that is there."""
    samplers = {peer: partial(_start_ms, peer) for peer in field.present}
    title, unit = "Start of a server", "ms to the first answer"
    note = ("what runs a request", lambda peer: peer.vm)
    return figure.compare("start", title, TEXT, unit, samplers, scale.n_starts, note, warm=True)


def _start_ms(peer: Peer) -> float:
    with peer.serving(Site("hello")) as server:
        return server.start_s * 1e3
