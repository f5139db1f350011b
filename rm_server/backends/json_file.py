"""A JSON object on disk, and what a library's error says; imports no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rm_server.errors import ArtifactUnreadable


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises ArtifactUnreadable."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        what = f"{path.parent} has no {path.name}" if path.parent.is_dir() else f"{path.parent} is no folder"
        raise ArtifactUnreadable(f"{what}; name a version's folder, or a checkpoint's with its tokenizer.") from None
    except (OSError, ValueError) as error:
        raise ArtifactUnreadable(f"{path} cannot be read: {first_line(error)}") from error
    if not isinstance(content, dict):
        raise ArtifactUnreadable(f"{path} is not a JSON object.")
    return content


def first_line(error: BaseException) -> str:
    """What an error says, without the advice that libraries add in further lines."""
    return str(error).strip().split("\n", 1)[0] or type(error).__name__
