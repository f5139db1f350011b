"""Locks between processes, which the system gives back when a process dies."""

from __future__ import annotations

import fcntl
from typing import IO

from rm_server.errors import CatalogUnavailable


def lock(file: IO[bytes], how: int) -> None:
    """``how``: of `fcntl.flock`. Raises CatalogUnavailable on a file system without locks; BlockingIOError."""
    try:
        fcntl.flock(file, how)
    except BlockingIOError:
        raise
    except OSError as error:  # some of a network or of buckets have none, or are mounted without
        raise CatalogUnavailable(
            f"{file.name} cannot be locked ({error.strerror}), as a home's files must be: put the home on another file "
            "system, or mount this one with locks."
        ) from error
