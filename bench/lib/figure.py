"""Servers compared by one figure each."""

from collections.abc import Callable, Mapping

from lib.peers import Peer
from lib.report import Bar, Bars, Section
from lib.rounds import interleave, median, shown, spread


def compare(
    name: str,
    title: str,
    text: str,
    unit: str,
    samplers: Mapping[Peer, Callable[[], float]],
    rounds: int,
    note: tuple[str, Callable[[Peer], str]],
    warm: bool = False,
) -> Section:
    """Takes a sample of every server in each round; a section with the medians.

    `note` is the head of the last column, and what stands there for each server.
    """
    outcome = interleave(name, rounds, {peer.name: sampler for peer, sampler in samplers.items()}, warm)
    measured = [(peer, outcome.samples[peer.name]) for peer in samplers if peer.name in outcome.samples]
    head, noted = note
    return Section(
        title=title,
        text=text,
        columns=["server", unit, "least to most", head],
        rows=[
            [peer.name, shown(median(samples, float)), spread(samples, float), noted(peer)]
            for peer, samples in measured
        ],
        panels=[
            Bars(
                f"{name}: {unit}", [Bar(peer.name, median(samples, float), peer.is_ours) for peer, samples in measured]
            )
        ],
        failed=outcome.failed,
    )
