"""What a caller asks for: ``name``, ``name@3`` or ``name@label``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from rm_server.errors import InvalidRequest, InvalidSelector
from rm_server.registry.names import check_label, check_model_name

_VERSION = re.compile(r"[1-9][0-9]{0,8}")


@dataclass(frozen=True, slots=True)
class Selector:
    """A model, and at most one of version and label; neither: the bare name."""

    model: str
    version: int | None = None
    label: str | None = None

    @property
    def is_bare(self) -> bool:
        """Whether it is just the name, so that a lease may decide."""
        return self.version is None and self.label is None

    def __str__(self) -> str:
        suffix = self.label if self.version is None else self.version
        return self.model if suffix is None else f"{self.model}@{suffix}"


@lru_cache(maxsize=1024)
def parse(text: str) -> Selector:
    """The selector that the text means. Raises InvalidSelector."""
    model, at, suffix = text.partition("@")
    try:
        check_model_name(model)
        if not at:
            return Selector(model)
        if _VERSION.fullmatch(suffix):
            return Selector(model, version=int(suffix))
        return Selector(model, label=check_label(suffix))
    except InvalidRequest as error:
        raise InvalidSelector(
            f"{text!r} is no selector: name, name@3 (that version) or name@label was expected. {error.message}"
        ) from None
