"""What a model, a label, a run and a digest may be called."""

from __future__ import annotations

import re

from rm_server.errors import InvalidRequest

MAX_NAME_LENGTH = 200

_MODEL = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]|/(?=[A-Za-z0-9]))*")
_LABEL = re.compile(r"(?=.*[^0-9])[A-Za-z0-9._-]+")
_RUN = re.compile(r"[A-Za-z0-9._:/-]{1,128}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


def check_model_name(name: str) -> str:
    """The name, or InvalidRequest: letters, digits, ``.``, ``_``, ``-``, ``/``, with a letter or digit in front."""
    if len(name) <= MAX_NAME_LENGTH and _MODEL.fullmatch(name):
        return name
    raise InvalidRequest(
        f"{name!r} cannot name a model: letters, digits, '.', '_', '-' and '/' are allowed, a letter or digit comes "
        f"first and after each '/', and the length is 1 to {MAX_NAME_LENGTH}."
    )


def check_label(label: str) -> str:
    """The label, or InvalidRequest: letters, digits, ``.``, ``_``, ``-``, and not digits alone (that is a version)."""
    if len(label) <= MAX_NAME_LENGTH and _LABEL.fullmatch(label):
        return label
    raise InvalidRequest(
        f"{label!r} cannot be a label: letters, digits, '.', '_' and '-' are allowed, not digits alone "
        f"(those are version numbers), and the length is 1 to {MAX_NAME_LENGTH}."
    )


def check_run(run: str) -> None:
    """Raises InvalidRequest where this cannot be the id of a run."""
    if not _RUN.fullmatch(run):
        raise InvalidRequest(
            f"{run[:200]!r} cannot name a run: 1 to 128 letters, digits, '.', '_', '-', ':' and '/' were expected."
        )


def is_digest(text: str) -> bool:
    """Whether the text has the form of a digest: 64 lower-case hexadecimal digits."""
    return _DIGEST.fullmatch(text) is not None


def check_digest(digest: str) -> str:
    """The digest, or InvalidRequest. Safe as a folder's name."""
    if is_digest(digest):
        return digest
    raise InvalidRequest(f"{digest!r} is no digest: 64 lower-case hexadecimal digits (SHA-256) are.")
