"""Policies for neoc."""

import shutil
from dataclasses import dataclass
from pathlib import Path

MIN_INSTANCES = 1000
"""neoc's default; more are asked for only where more requests are alive at once."""

WIDE_LIMITS = (
    'memory = "64 MiB"',
    'cpu = "5 m"',
    'wall = "60 m"',
    'requests = "1000000/s"',
    'operations = "1000000/s"',
    "connections = 10000",
)
"""No measurement meets one of them."""


@dataclass(frozen=True)
class Tenant:
    """One tenant of a policy."""

    name: str
    script: Path
    route: str
    isolation: str | None = None
    """The key of that name; left out when `None`."""
    upstream_port: int | None = None
    """The loopback port that it may call."""
    has_wide_limits: bool = True
    """Else it has neoc's defaults, and a shorter text: a policy file may be 1 MiB long."""


def write(folder: Path, port: int, tenants: list[Tenant], n_requests: int = 0) -> Path:
    """Writes a policy beside its scripts; `n_requests` is how many will be alive at once."""
    host = f"""[host]
listen = "127.0.0.1:{port}"
instances = {max(MIN_INSTANCES, n_requests + n_requests // 10)}
"""
    for script in {tenant.script for tenant in tenants if tenant.script.parent != folder}:
        shutil.copy(script, folder)
    file = folder / "policy.toml"
    file.write_text("\n".join([host, *map(_tenant, tenants)]))
    return file


def _tenant(tenant: Tenant) -> str:
    at = f"tenant.{tenant.name}"
    lines = [f"[{at}]", f'script = "{tenant.script.name}"', f'routes = ["{tenant.route}"]']
    if tenant.isolation is not None:
        lines.append(f'isolation = "{tenant.isolation}"')
    if tenant.has_wide_limits:
        lines += [f"[{at}.limits]", *WIDE_LIMITS]
    if tenant.upstream_port is not None:
        lines += [
            f"[[{at}.allow.http]]",
            f'hosts = ["http://127.0.0.1:{tenant.upstream_port}"]',
            'addresses = ["127.0.0.0/8"]',
        ]
    return "\n".join(lines) + "\n"
