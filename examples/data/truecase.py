"""Puts capitals back into lower-cased stories: sentence starts, "I", and the names a cased text teaches."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)?")
# A word begins a sentence after the text's start, a line break, or . ! ? (perhaps a quote) and a space;
# inside speech after an opening quote, which the text's start, a space or a line break precedes.
SENTENCE_START = re.compile(r'(?:^|\n|[.!?]"? |(?:^|[\s])")$')
END_OF_SPEECH = re.compile(r'[.!?]" $')
_VERB = (
    "(?:said|says|asked|replied|shouted|cried|exclaimed|yelled|answered|whispered"
    "|called|laughed|thought|wondered|explained)"
)
SAYING = re.compile(rf"\w+(?: \w+){{0,2}} {_VERB}\b|{_VERB} \w+")
NAMED = re.compile(r"\b(?:named|called|name is|name was) ([a-z]+)")


def _is_sentence_start(text: str, begin: int) -> bool:
    before = text[max(0, begin - 3) : begin]
    if not SENTENCE_START.search(before):
        return False
    return not (END_OF_SPEECH.search(before) and SAYING.match(text, begin))


class Truecaser:
    """Learns from cased texts how each word is written in the middle of a sentence."""

    def __init__(self, cased: Iterable[str]) -> None:
        forms: dict[str, Counter[str]] = {}
        at_start: Counter[str] = Counter()
        for text in cased:
            for match in WORD.finditer(text):
                word = match.group()
                if _is_sentence_start(text, match.start()):
                    at_start[word.lower()] += 1
                else:
                    forms.setdefault(word.lower(), Counter())[word] += 1
        self._written_as = {word: counts.most_common(1)[0][0] for word, counts in forms.items()}

    def restore(self, text: str) -> str:
        """`text` is wholly lower-case; an unknown word after "named" or "called" is a name in this text."""
        names = {name for name in NAMED.findall(text) if name not in self._written_as}

        def written(match: re.Match[str]) -> str:
            word = match.group()
            stem, _, tail = word.partition("'")
            form = self._written_as.get(word, self._written_as.get(stem, stem) + (f"'{tail}" if tail else ""))
            if stem in names or stem == "i" or _is_sentence_start(text, match.start()):
                form = form[0].upper() + form[1:]
            return form

        return WORD.sub(written, text)
