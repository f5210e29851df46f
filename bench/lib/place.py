"""Where things are."""

from pathlib import Path

BENCH = Path(__file__).resolve().parent.parent
BUILD = BENCH / "build"
SCRIPTS = BENCH / "scripts"
COMPUTE = BENCH / "compute"
PEERS = BENCH / "peers"
REPOSITORY = BENCH.parent


def fill(template: Path, target: Path, **values: object) -> Path:
    """Copies a file with each `@name@` replaced by the value of that name."""
    text = template.read_text()
    for name, value in values.items():
        text = text.replace(f"@{name}@", str(value))
    target.write_text(text)
    return target
