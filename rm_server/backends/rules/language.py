"""The rule that asks in which language a text is written: py3langid, whose model lies in the package."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar, Literal

from rm_server.backends.rules.settings import finite_number

CHARACTERS_READ = 4000
"""More would tell nothing new, and text may be made to be slow to normalise."""


@dataclass(frozen=True)
class Language:
    """1 where the text's most likely language is one of ``languages`` (ISO 639-1: en, de, …), else 0.

    The first 4000 characters count. A text whose language is known with less than ``min_confidence``, a number from 0
    to 1, is in none: digits, for example.
    """

    languages: Sequence[str] = ()
    min_confidence: float = 0.5
    looks_at: ClassVar[Literal["text"]] = "text"
    _identifier: Any = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not 0 < finite_number(self.min_confidence, "min_confidence") <= 1:
            raise ValueError("min_confidence must be above 0 and at most 1")
        if not isinstance(self.languages, list | tuple) or not self.languages:
            raise ValueError("languages must be a list of at least one code, such as en")
        identifier = _identifier()
        for language in self.languages:
            if language not in identifier.labels:
                raise ValueError(
                    f"language {language!r} is not known; known are {', '.join(sorted(identifier.labels))}"
                )
        object.__setattr__(self, "_identifier", identifier)

    def value(self, text: str) -> float:
        language, confidence = self._identifier.classify(text[:CHARACTERS_READ])
        return 1.0 if confidence >= self.min_confidence and language in self.languages else 0.0


@cache
def _identifier() -> Any:
    """One for the process: it takes some 30 MB."""
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ModuleNotFoundError:
        raise ValueError(
            'rules of the type language need the package py3langid: pip install "rm-service[language]"'
        ) from None
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
