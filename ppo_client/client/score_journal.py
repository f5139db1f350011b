"""What has been done of a file that is being scored: a line that says what is being done, then one for each row."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from ppo_client.client.data_files import Row
from ppo_client.client.errors import InvalidFile, VersionChanged


@dataclass(frozen=True, slots=True)
class Pin:
    """The version that scores the whole file."""

    model: str
    version: int
    digest: str
    calibration: str | None = None
    """By digest; None: raw scores"""


class Journal:
    """What has been done of a job: opened anew, it is where it was. A line that was torn off is not counted.

    While it is open it is locked, so that two runs of one job do not both write to it. Raises InvalidFile.
    """

    def __init__(self, path: Path, identity: dict[str, Any]) -> None:
        self.path = path
        self.pin: Pin | None = None
        self.num_rows = 0
        self.num_failed = 0
        self._identity = identity

    def __enter__(self) -> Journal:
        try:
            self._file = self.path.open("a+b")
        except OSError as error:
            raise InvalidFile(f"{self.path} cannot be written: {error}") from error
        try:
            self._lock()
            self._resume()
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self.pin is None:
            self.path.unlink(missing_ok=True)  # nothing was done
        self._file.close()

    def add(self, pin: Pin, lines: list[Row]) -> None:
        """Appends the lines of the next rows; they are on disk when it returns. Raises VersionChanged."""
        if self.pin is None:
            self.pin = pin
            self._write(self._identity | {"scored_by": asdict(pin)})
        elif pin != self.pin:  # model, version and digest were asked for
            raise VersionChanged(
                f"{pin.model}@{pin.version} was calibrated anew: its scores have the calibration "
                f"{pin.calibration or 'none':.12}, those in {self.path} {self.pin.calibration or 'none':.12}, which is "
                "another scale; remove that file to begin again"
            )
        for line in lines:
            self._write(line)
        self._file.flush()
        os.fsync(self._file.fileno())
        self.num_rows += len(lines)
        self.num_failed += sum("error" in line for line in lines)

    def lines(self) -> Iterator[Row]:
        """One for each row."""
        with self.path.open("rb") as file:
            yield from islice(map(json.loads, file), 1, None)

    def _write(self, line: Row) -> None:
        self._file.write(json.dumps(line).encode() + b"\n")

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InvalidFile(f"{self.path} is being written by another run; wait for it, or end it") from None
        except OSError as error:  # some network file systems have no locks, or are mounted without
            raise InvalidFile(
                f"{self.path} cannot be locked against a second run: {error}; name an output on another file system"
            ) from error

    def _resume(self) -> None:
        self._file.seek(0)
        content = self._file.read()
        whole = content[: content.rfind(b"\n") + 1]
        try:
            header, *lines = [json.loads(line) for line in whole.splitlines()] or [{}]
            pin = Pin(**header.pop("scored_by")) if header else None
        except (ValueError, TypeError, KeyError, AttributeError):
            raise InvalidFile(f"{self.path} is not what a run of this command left; remove it") from None
        self._file.truncate(len(whole))
        if pin is None:
            return
        # What it does not name was no option yet when it was begun.
        if changed := [name for name, value in self._identity.items() if header.get(name, False) != value]:
            raise InvalidFile(
                f"{self.path} is of a run with another {' and '.join(changed)}; finish that one, or remove the file to "
                "start anew"
            )
        self.pin = pin
        self.num_rows = len(lines)
        self.num_failed = sum("error" in line for line in lines)
