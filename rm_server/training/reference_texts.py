"""Texts to try a version on: from a data file of any of the usual forms, else a few of our own."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import TypeAlias

from rm_server.backends.items import Content
from rm_server.training.data_files import BadData, Row, read_rows
from rm_server.training.preferences import read_preferences
from rm_server.training.rows import content_of

Text: TypeAlias = tuple[Content, Content]
"""Prompt and completion; an empty prompt: the completion stands alone."""

_COMPLETION_FIELDS = ("completion", "response", "text")

# Unlike one another in length, language, register, form and quality, so that a version which tells texts apart at all
# gives them different scores.
BUILT_IN_TEXTS: tuple[Text, ...] = (
    ("What is the capital of France?", "The capital of France is Paris."),
    ("What is the capital of France?", "I do not know, and I do not care. Go away!"),
    ("What is 17 + 25?", "17 + 25 = 42."),
    ("What is 17 + 25?", "17 + 25 = 1725, obviously."),
    ("Write one sentence about the sea.", "The sea was quiet that morning, and the boats lay still in the harbour."),
    ("Write one sentence about the sea.", "sea sea sea sea sea sea sea sea"),
    (
        "Tell me a story about a fox.",
        "Once upon a time there was a fox who could count to seven. One day she met the number eight. They became "
        "friends, and from then on the fox could count to eight, which helped her very much when the geese came back.",
    ),
    ("Tell me a story about a fox.", "No."),
    ("Write a function that adds two numbers.", "def add(a, b):\n    return a + b"),
    ("Write a function that adds two numbers.", "def add(a, b):\n    return a - b  # TODO"),
    ("How do I sleep better?", "Go to bed at the same time every day, keep the room dark, and avoid coffee at night."),
    ("How do I sleep better?", "Just stop being tired, it is easy!!!"),
    ("Wie spät ist es?", "Es ist Viertel vor eins, glaube ich."),
    ("请介绍一下北京。", "北京是中国的首都，有三千多年的历史。"),
    ("Summarise: the meeting was moved to Friday.", "The meeting is now on Friday."),
    ("List three fruits.", "1. Apples\n2. Pears\n3. Plums"),
)


def read_texts(path: Path) -> list[Text]:
    """The different texts of a data file, in its order.

    Rows are preference pairs (``prompt``, ``chosen``, ``rejected``: two texts each), or have ``completion``,
    ``response`` or ``text``, with a ``prompt`` where there is one. Raises BadData.
    """
    rows = read_rows(path, ("prompt", *_COMPLETION_FIELDS))
    first = next(rows, None)
    if first is None:
        raise BadData(f"{path} has no rows.")
    if "chosen" in first[1]:
        pairs = read_preferences(path)
        texts = [(pair.prompt, completion) for pair in pairs for completion in (pair.chosen, pair.rejected)]
    else:
        texts = [_text_of(row, place) for place, row in chain([first], rows)]
    return list(dict.fromkeys(texts))


def _text_of(row: Row, place: str) -> Text:
    for name in _COMPLETION_FIELDS:
        if row.get(name) is not None:
            prompt = content_of(row, "prompt", place) if row.get("prompt") else ""
            return prompt, content_of(row, name, place)
    raise BadData(
        f"{place} has neither chosen and rejected nor {', '.join(_COMPLETION_FIELDS)}; "
        f"it has {', '.join(map(repr, row)) or 'nothing'}."
    )
