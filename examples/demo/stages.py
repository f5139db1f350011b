"""Stages whose results are kept: a second run of the demo does again only what has changed."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path


def content_digest(inputs: Iterable[Path | str]) -> str:
    """SHA-256 over files, over the files of folders, and over texts, in the order given."""
    digest = hashlib.sha256()
    for item in inputs:
        if isinstance(item, str):
            digest.update(item.encode() + b"\0")
            continue
        files = sorted(p for p in item.rglob("*") if p.is_file()) if item.is_dir() else [item]
        for file in files:
            if "__pycache__" not in file.parts:
                digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


class Stages:
    """Runs each stage once for the same inputs, and remembers how long it took."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.seconds: dict[str, float] = {}

    def run(self, name: str, inputs: Iterable[Path | str], outputs: Iterable[Path], action: Callable[[], None]) -> bool:
        """Runs ``action`` unless it has run with these inputs; the outputs are removed first. True: it ran."""
        marker = self._folder / f"{name}.json"
        digest = content_digest(inputs)
        if marker.exists():
            known = json.loads(marker.read_text())
            if known["inputs"] == digest and all(path.exists() for path in outputs):
                self.seconds[name] = known["seconds"]
                return False
        marker.unlink(missing_ok=True)
        for path in outputs:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        began = time.monotonic()
        action()
        self.seconds[name] = round(time.monotonic() - began, 1)
        self._folder.mkdir(parents=True, exist_ok=True)
        marker.write_text(json.dumps({"inputs": digest, "seconds": self.seconds[name]}))
        return True
