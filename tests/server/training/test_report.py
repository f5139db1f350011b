"""The table and the page."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html.parser import HTMLParser

from rm_server.backends.items import Content
from rm_server.training.assessment import Report, Subject, assess
from rm_server.training.offline_scoring import Scored
from rm_server.training.preferences import Preference
from rm_server.training.ratings import RatedText
from rm_server.training.report import to_html, to_text


def make_report(name: str = "m@1", num_pairs: int = 60, **more: object) -> Report:
    pairs = [
        Preference(f"p{i // 3}", "x" * (3 + i % 7), "x" * (3 + (5 * i) % 8), f"g{i // 3}", "a < b & $c$")
        for i in range(num_pairs)
    ]

    def score(texts: Sequence[tuple[Content, Content]]) -> list[Scored]:
        return [Scored(float((len(completion) * 7) % 5)) for _, completion in texts]

    ratings = [RatedText(p.prompt, p.chosen, float(len(p.chosen) % 4), p.group) for p in pairs]
    return assess(score, Subject(name, "d" * 64, "pairs.jsonl", "f" * 64), pairs, ratings, **more)  # type: ignore[arg-type]


class Tags(HTMLParser):
    """Sees that tags are closed in order, and collects the addresses that a browser would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.counts: dict[str, int] = {}
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1
        self.addresses += [
            v or "" for n, v in attrs if n in ("src", "href", "xlink:href") and not (v or "").startswith("#")
        ]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def parse(page: str) -> Tags:
    tags = Tags()
    tags.feed(page)
    tags.close()
    return tags


def test_the_page_is_whole_and_fetches_nothing() -> None:
    page = to_html(make_report())
    tags = parse(page)
    assert tags.open == []
    assert tags.counts["svg"] == tags.counts["figure"] == 6
    assert tags.addresses == []
    assert "script" not in tags.counts
    assert "nan" not in re.sub(r"<svg.*?</svg>", "", page, flags=re.DOTALL).lower().split()


def test_names_are_text_on_the_page_not_markup() -> None:
    page = to_html(make_report(name="<script>alert(1)</script>"))
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "a &lt; b &amp; $c$" in page  # the subset, in the table and in its plot


def test_page_and_table_say_the_same() -> None:
    report = make_report()
    page, table = to_html(report), to_text(report)
    accuracy = f"{100 * report.evaluation.accuracy:.1f} %"
    assert accuracy in page
    assert accuracy in table
    assert report.verdict.headline in page
    for caution in report.verdict.cautions:
        assert f"! {caution}" in table


def test_the_same_report_gives_the_same_page() -> None:
    report = make_report()
    assert to_html(report) == to_html(report)


def test_a_report_of_one_prompt_can_be_shown() -> None:
    report = make_report(num_pairs=3)
    assert report.evaluation.accuracy_interval is None
    assert parse(to_html(report)).open == []
    assert report.verdict.headline in to_text(report)


def test_one_pair_is_no_plural() -> None:
    report = make_report(num_pairs=1)
    page, table = to_html(report), to_text(report)
    assert "1 pair of 1 prompt" in page
    assert "1 pair of 1 prompt" in table
    assert not re.search(r"\b1 (pairs|prompts|texts)\b", page + table)
    assert "60 pairs of 20 prompts" in to_html(make_report())
