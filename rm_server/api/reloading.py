"""Files that are read again when they change, while the server serves: tokens, certificates."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from rm_server.config import ConfigError
from rm_server.metrics import Metrics

logger = logging.getLogger(__name__)

INTERVAL_S = 1.0

_Stamp = tuple[int, int, int] | None
"""Time of the last change, inode and size; None: it is not there."""


class WatchedFiles:
    """A few files that belong together. ``load`` reads them, and raises ConfigError where they cannot be used.

    What was loaded before stays in use then, and the same broken files are not tried again until they change.
    ``name`` is what log and metrics call them.
    """

    def __init__(self, name: str, paths: Collection[Path], load: Callable[[], None], metrics: Metrics) -> None:
        self._name = name
        self._paths = tuple(paths)
        self._load = load
        self._metrics = metrics
        self._stamps = self._look()

    def poll(self) -> None:
        """Loads the files if one of them has changed."""
        if (stamps := self._look()) != self._stamps:
            self._stamps = stamps  # taken before reading: a change meanwhile is found the next time
            self.reload()

    def reload(self) -> None:
        """Loads them, changed or not."""
        try:
            self._load()
        except ConfigError as error:
            self._metrics.files_reloaded(self._name, is_in_use=False)
            logger.error("new files are refused, the old ones stay in use: %s", error, extra={"files": self._name})
        except Exception:
            # A defect. Whatever it is: who gives up here never sees a revoked token.
            self._metrics.files_reloaded(self._name, is_in_use=False)
            logger.exception("new files could not be read, the old ones stay in use", extra={"files": self._name})
        else:
            self._metrics.files_reloaded(self._name, is_in_use=True)
            logger.info("files were loaded again", extra={"files": self._name})

    def _look(self) -> tuple[_Stamp, ...]:
        return tuple(_stamp(path) for path in self._paths)


async def watch(files: Sequence[WatchedFiles], interval_s: float = INTERVAL_S) -> None:
    """Looks again and again, until it is cancelled."""
    while True:
        await asyncio.sleep(interval_s)
        for watched in files:
            watched.poll()


def _stamp(path: Path) -> _Stamp:
    """Follows links: Kubernetes changes a mounted secret by moving one."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size
