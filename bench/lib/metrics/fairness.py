"""A tenant with few requests beside others that never give up the processor."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

from lib import policy, server
from lib.client import Connection
from lib.failure import Failure
from lib.peers import NEOC, NEOC_TENANT, PROGRAMS, SHARED, Field, Peer, Site
from lib.place import SCRIPTS
from lib.report import Bar, Bars, Section
from lib.rounds import interleave, percentile, shown
from lib.scale import Scale

N_SPINNERS = 8
PER_SECOND = 10

HELLO, WAIT, WAIT_INSIDE = "hello", "hello after a wait of 1 ms", "that wait by the script's clock"
KINDS = HELLO, WAIT, WAIT_INSIDE
PHASES = ALONE, BESIDE = "alone", "beside"
PROCESSES = "a process each"

TEXT = f"""{N_SPINNERS} tenants run an endless loop each; one more gets {PER_SECOND} requests a second, measured
alone on the same host and beside the loops. A script's clock steps by 1 ms in neoc. What to compare with is the
kernel's scheduler: {N_SPINNERS} processes that spin, and a native server. The client shares the machine with all."""

Times = dict[tuple[str, str], list[float]]
"""Milliseconds by phase and kind."""


@dataclass(frozen=True)
class Stage:
    """A server with its spinners at hand."""

    port: int
    spinning: Callable[[], AbstractContextManager[None]]
    """Lets them spin within the block."""


def measure(field: Field, scale: Scale) -> Section:
    """neoc, and a process for each tenant."""
    entries = {peer.name: partial(_sample, partial(_neoc, peer), scale) for peer in field.among(NEOC, NEOC_TENANT)}
    if SHARED in field.present:
        entries[PROCESSES] = partial(_sample, _processes, scale)
    outcome = interleave("fairness", scale.rounds, entries)
    pooled = {
        (name, kind, phase): [ms for times in rounds for ms in times[phase, kind]]
        for name, rounds in outcome.samples.items()
        for kind in KINDS
        for phase in PHASES
    }
    bars = [
        Bar(f"{name}, {phase}", percentile(times, 99), name != PROCESSES)
        for (name, kind, phase), times in pooled.items()
        if kind == HELLO
    ]
    return Section(
        title=f"Fairness: beside {N_SPINNERS} spinning tenants",
        text=TEXT,
        columns=["server", "what", "", "p50 ms", "p90 ms", "p99 ms", "most ms", "requests"],
        rows=[[name, kind, phase, *_distribution(times)] for (name, kind, phase), times in pooled.items()],
        panels=[Bars("fairness: p99 ms of a hello", bars)],
        failed=outcome.failed,
    )


def _distribution(times_ms: list[float]) -> list[str]:
    return [*(shown(percentile(times_ms, percent)) for percent in (50, 90, 99, 100)), str(len(times_ms))]


def _sample(stage: Callable[[], AbstractContextManager[Stage]], scale: Scale) -> Times:
    """Any request that fails, or a spinner that ends, fails the sample: there may be no errors."""
    with stage() as running:
        times = _probe(running.port, ALONE, scale)
        with running.spinning():
            times |= _probe(running.port, BESIDE, scale)
    return times


def _probe(port: int, phase: str, scale: Scale) -> Times:
    with Connection(port) as connection:
        hellos = _at_rate(partial(connection.get, "/hello"), scale.probe_s)
        waits = _at_rate(partial(connection.get, "/wait"), scale.probe_s)
    return {
        (phase, HELLO): [ms for ms, _ in hellos],
        (phase, WAIT): [ms for ms, _ in waits],
        (phase, WAIT_INSIDE): [float(answer) for _, answer in waits],
    }


def _at_rate(request: Callable[[], str], seconds: int) -> list[tuple[float, str]]:
    """Requests at fixed moments. One that is sent late, because the one before was slow, counts from its moment."""
    answers = []
    begin = time.monotonic()
    for number in range(seconds * PER_SECOND):
        due = begin + number / PER_SECOND
        if due > time.monotonic():
            time.sleep(due - time.monotonic())
            due = time.monotonic()
        answer = request()
        answers.append(((time.monotonic() - due) * 1e3, answer))
    return answers


@contextmanager
def _neoc(peer: Peer) -> Iterator[Stage]:
    isolation = "tenant" if peer is NEOC_TENANT else None
    spinners = [policy.Tenant(f"spin{n}", SCRIPTS / "spin.luau", f"/spin{n}", isolation) for n in range(N_SPINNERS)]
    tenants = [policy.Tenant("probe", SCRIPTS / "probe.luau", "/*", isolation), *spinners]
    port = server.free_port()
    with server.folder() as folder:
        command = [str(PROGRAMS["neoc"]), "host", "--policy", str(policy.write(folder, port, tenants))]
        with server.serving(command, folder, port):
            yield Stage(port, partial(_spinning_tenants, port, [spinner.route for spinner in spinners]))


@contextmanager
def _spinning_tenants(port: int, paths: list[str]) -> Iterator[None]:
    """Their requests end with their connections."""
    with ExitStack() as stack:
        connections = [stack.enter_context(Connection(port)) for _ in paths]
        for connection, path in zip(connections, paths):
            connection.send(path)
        yield
        if any(connection.is_answered() for connection in connections):
            raise Failure("a tenant stopped spinning")


@contextmanager
def _processes() -> Iterator[Stage]:
    with SHARED.serving(Site("probe")) as running:
        yield Stage(running.port, _spinning_processes)


@contextmanager
def _spinning_processes() -> Iterator[None]:
    command = [str(PROGRAMS["native"]), "run", "1", str(SCRIPTS / "spin_program.luau")]
    with ExitStack() as stack:
        children = [
            stack.enter_context(server.process(command, stack.enter_context(server.folder())))
            for _ in range(N_SPINNERS)
        ]
        yield
        if any(child.poll() is not None for child in children):
            raise Failure("a process stopped spinning")
