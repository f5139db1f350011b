"""Selectors, as tables."""

from __future__ import annotations

import pytest

from rm_server.errors import InvalidSelector
from rm_server.scoring.selector import Selector, parse


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("helpfulness", Selector("helpfulness")),
        ("helpfulness@3", Selector("helpfulness", version=3)),
        ("helpfulness@stable", Selector("helpfulness", label="stable")),
        ("team-a/model.v2_x@canary-1", Selector("team-a/model.v2_x", label="canary-1")),
        ("m@3a", Selector("m", label="3a")),
        ("m@999999999", Selector("m", version=999_999_999)),
    ],
)
def test_reads_and_writes(text: str, expected: Selector) -> None:
    assert parse(text) == expected
    assert str(parse(text)) == text
    assert parse(text).is_bare is ("@" not in text)


@pytest.mark.parametrize(
    "text",
    ["", "@", "@3", "m@", "m@0", "m@03", "m@3@4", "m@a b", "a b", "m@9999999999", "m/", "/m", "m@ü", "x" * 300],
)
def test_refuses_what_is_no_selector(text: str) -> None:
    with pytest.raises(InvalidSelector, match="is no selector: name, name@3"):
        parse(text)
