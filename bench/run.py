#!/usr/bin/env python3
"""Measures neoc beside every peer that is installed: `python3 bench/run.py`. README.md says what and how."""

import argparse
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from lib import chart, machine, peers, report
from lib.failure import Failure
from lib.metrics import cli, compute, crowd, fairness, hello, outbound, parked, start, tenants
from lib.peers import PROGRAMS, Field
from lib.place import BENCH, BUILD
from lib.report import Section
from lib.scale import FULL, QUICK, Scale

METRICS: dict[str, Callable[[Field, Scale], Section]] = {
    "hello": hello.measure,
    "single": hello.measure_single,
    "tenants": tenants.measure,
    "crowd": crowd.measure,
    "parked": parked.measure,
    "start": start.measure,
    "cli": cli.measure,
    "outbound": outbound.measure,
    "compute": compute.measure,
    "fairness": fairness.measure,
}


def main() -> int:
    """Measures, prints, writes the report."""
    arguments = _arguments()
    scale = QUICK if arguments.quick else FULL
    if arguments.neoc:
        PROGRAMS["neoc"] = arguments.neoc.resolve()
    # Every parked request is a connection on either side.
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    # Ends the servers that run, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    watch = machine.Watch()
    field = peers.survey()
    sections, absent = [], dict(field.absent)
    for name in arguments.only or METRICS:
        try:
            section = METRICS[name](field, scale)
        except Failure as problem:
            absent[name] = str(problem)
            continue
        print(report.plain(section), flush=True)
        sections.append(section)
    for name, reason in absent.items():
        print(f"left out: {name}: {reason}")
    # Only a whole run of the build that is there may replace the report that is kept.
    folder = BUILD if arguments.quick or arguments.only or arguments.neoc else BENCH
    _write(folder, machine.describe(scale, watch), absent, sections)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measures neoc beside every peer that is installed.")
    parser.add_argument("--quick", action="store_true", help="small counts: shows that it works, not how fast")
    parser.add_argument("--only", action="append", choices=METRICS, help="one measurement; may be repeated")
    parser.add_argument("--neoc", type=Path, metavar="FILE", help="another build of neoc than target/release/neoc")
    return parser.parse_args()


def _write(folder: Path, description: list[tuple[str, str]], absent: dict[str, str], sections: list[Section]) -> None:
    image = folder / "report.svg"
    image.write_text(chart.svg([panel for section in sections for panel in section.panels]))
    text = report.markdown(description, absent, sections, image.name)
    (folder / "report.md").write_text(text)
    print(f"\nwritten: {(folder / 'report.md').relative_to(BENCH.parent)}")


if __name__ == "__main__":
    sys.exit(main())
