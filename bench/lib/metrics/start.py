"""From the start of a server to its first answer."""

from functools import partial

from lib.peers import Field, Peer, Site
from lib.report import Bar, Bars, Section
from lib.rounds import interleave, median, shown, spread
from lib.scale import Scale

TEXT = """From the start of the process, with one tenant, to the first answer, in ms of the clock. What a program keeps
between two starts (neoc: its compiled image) is there: an earlier start made it."""


def measure(field: Field, scale: Scale) -> Section:
    """Every server that is there."""
    entries = {peer.name: partial(_start_ms, peer) for peer in field.present}
    outcome = interleave("start", scale.n_starts, entries, warm=True)
    present = [peer for peer in field.present if peer.name in outcome.samples]
    figures = {peer.name: outcome.samples[peer.name] for peer in present}
    bars = [Bar(peer.name, median(figures[peer.name], float), peer.is_ours) for peer in present]
    return Section(
        title="Start of a server to its first answer",
        text=TEXT,
        columns=["server", "ms", "least to most"],
        rows=[[bar.label, shown(bar.value), spread(figures[bar.label], float)] for bar in bars],
        panels=[Bars("start: ms to the first answer", bars)],
        failed=outcome.failed,
    )


def _start_ms(peer: Peer) -> float:
    with peer.serving(Site("hello")) as server:
        return server.start_s * 1e3
