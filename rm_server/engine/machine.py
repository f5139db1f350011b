"""How much memory this process may still take: what the system says is available, or its control group allows, if less.

Linux says it; elsewhere nothing is known and nothing is refused on that account.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

_NO_LIMIT = 1 << 60  # version 1 writes a number near 2^63 where there is none


def available_bytes(proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes; None: unknown. Page cache counts as available, since it goes when memory is wanted."""
    found = [*_system(proc), *_of_version_2(proc, groups), *_of_version_1(proc, groups)]
    return max(0, min(found)) if found else None


def _system(proc: Path) -> Iterator[int]:
    try:
        lines = (proc / "meminfo").read_text().splitlines()
    except OSError:
        return
    yield from (int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


def _of_version_2(proc: Path, groups: Path) -> Iterator[int]:
    for folder in _folders(proc, groups, ""):
        yield from _left(folder, "memory.max", "memory.current", "inactive_file")


def _of_version_1(proc: Path, groups: Path) -> Iterator[int]:
    for folder in _folders(proc, groups / "memory", "memory"):
        yield from _left(folder, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def _folders(proc: Path, root: Path, controller: str) -> Iterator[Path]:
    """This process's group and those around it: each has a limit of its own. In a container only the root shows."""
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        _, controllers, path = line.split(":", maxsplit=2)
        if controller in controllers.split(","):
            folder = root / path.lstrip("/")
            yield from (parent for parent in (folder, *folder.parents) if parent.is_relative_to(root))
            return
    yield root


def _left(folder: Path, limit_name: str, usage_name: str, cache_name: str) -> Iterator[int]:
    try:
        limit_text, usage = (folder / limit_name).read_text().strip(), int((folder / usage_name).read_text())
        said = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return
    if limit_text != "max" and int(limit_text) < _NO_LIMIT:
        yield int(limit_text) - usage + int(said.get(cache_name, 0))
