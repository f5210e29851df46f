"""The report: sections with a table each, as Markdown."""

import re
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Bar:
    """One bar of the chart."""

    label: str
    value: float
    is_ours: bool = False


@dataclass(frozen=True)
class Bars:
    """One panel of the chart. Less is better in all of them."""

    title: str
    bars: list[Bar]


@dataclass(frozen=True)
class Section:
    """What one measurement found."""

    title: str
    text: str
    """What the figures mean, in a paragraph."""
    columns: list[str]
    rows: list[list[str]]
    panels: list[Bars] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    """What could not be measured, and why."""


def markdown(machine: list[tuple[str, str]], absent: dict[str, str], sections: list[Section], chart: str) -> str:
    """The whole report; `chart` is the name of the image beside it."""
    parts = ["# neoc beside others", "Made by `bench/run.py`; README.md says what each figure means."]
    parts.append(_table(["", ""], [list(row) for row in machine]))
    parts.append(f"![Less is better in every panel]({chart})")
    for section in sections:
        parts += [f"## {section.title}", section.text, _table(section.columns, section.rows)]
        parts += [f"Not measured: {name}, because {reason}." for name, reason in section.failed.items()]
    if absent:
        parts.append("## Left out")
        parts.append("\n".join(f"- {name}: {reason}" for name, reason in absent.items()))
    return "\n\n".join(parts) + "\n"


def plain(section: Section) -> str:
    """A section for the terminal."""
    rows = [section.columns, *section.rows]
    columns = range(len(section.columns))
    widths = [max(len(row[column]) for row in rows) for column in columns]
    to_right = [_are_numbers(column, section.rows) for column in columns]
    lines = [
        "  ".join(row[n].rjust(widths[n]) if to_right[n] else row[n].ljust(widths[n]) for n in columns) for row in rows
    ]
    lines += [f"{name}: not measured: {reason}" for name, reason in section.failed.items()]
    return "\n".join(["", section.title, *(line.rstrip() for line in lines)])


def _are_numbers(column: int, rows: list[list[str]]) -> bool:
    """Whether the column holds figures, ranges or nothing: those stand on the right."""
    return all(re.fullmatch(r"[\d., to]*", row[column]) for row in rows)


def _table(columns: list[str], rows: list[list[str]]) -> str:
    rules = ["---:" if _are_numbers(column, rows) else "---" for column in range(len(columns))]
    return "\n".join(f"| {' | '.join(row)} |" for row in [columns, rules, *rows])
