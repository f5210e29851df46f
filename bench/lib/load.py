"""Servers under load. The generator is wrk: one thread; each connection sends as soon as it was answered."""

import json
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from lib import process
from lib.failure import Failure
from lib.peers import PROGRAMS, Peer
from lib.place import BENCH
from lib.report import Bar, Bars, Section
from lib.rounds import interleave, median, shown, spread
from lib.scale import Scale
from lib.server import Server

COLUMNS = ["server", "CPU us", "least to most", "requests/s", "p50 ms", "p99 ms", "what runs a request"]


@dataclass(frozen=True)
class Load:
    """What a server did under load."""

    cpu_us: float
    """Computing time of the server's process tree per request."""
    per_second: float
    p50_ms: float
    p99_ms: float


def compare(
    name: str, title: str, text: str, present: list[Peer], sample: Callable[[Peer], Load], scale: Scale
) -> Section:
    """Takes a sample of every server in each round; a section with the medians."""
    outcome = interleave(name, scale.rounds, {peer.name: partial(sample, peer) for peer in present})
    measured = [(peer, outcome.samples[peer.name]) for peer in present if peer.name in outcome.samples]
    bars = [Bar(peer.name, median(loads, _cpu_us), peer.is_ours) for peer, loads in measured]
    return Section(
        title=title,
        text=text,
        columns=COLUMNS,
        rows=[_row(peer, loads) for peer, loads in measured],
        panels=[Bars(f"{name}: CPU us per request", bars)],
        failed=outcome.failed,
    )


def measure(server: Server, path: str, n_connections: int, scale: Scale) -> Load:
    """Warms the server up, then loads it and reads its computing time before and after."""
    _wrk(server, path, n_connections, scale.warm_s)
    before_s = process.cpu_s(server.pid)
    answer = _wrk(server, path, n_connections, scale.load_s)
    used_s = process.cpu_s(server.pid) - before_s
    if answer["errors"] or not answer["requests"]:
        raise Failure(f"{answer['errors']} errors in {answer['requests']} requests")
    return Load(
        cpu_us=used_s * 1e6 / answer["requests"],
        per_second=answer["requests"] * 1e6 / answer["duration_us"],
        p50_ms=answer["p50_us"] / 1e3,
        p99_ms=answer["p99_us"] / 1e3,
    )


def _cpu_us(load: Load) -> float:
    return load.cpu_us


def _row(peer: Peer, loads: list[Load]) -> list[str]:
    return [
        peer.name,
        shown(median(loads, _cpu_us)),
        spread(loads, _cpu_us),
        shown(median(loads, lambda load: load.per_second)),
        shown(median(loads, lambda load: load.p50_ms)),
        shown(median(loads, lambda load: load.p99_ms)),
        peer.vm,
    ]


def _wrk(server: Server, path: str, n_connections: int, seconds: int) -> dict[str, int]:
    command = [str(PROGRAMS["wrk"]), "-t1", f"-c{n_connections}", f"-d{seconds}s", "--timeout", "10s"]
    command += ["-s", str(BENCH / "load.lua"), server.url(path)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=seconds + 60)
    except FileNotFoundError:
        raise Failure("wrk is not installed") from None
    counts: dict[str, int] = json.loads(done.stdout.strip().splitlines()[-1])
    return counts
