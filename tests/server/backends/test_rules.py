"""Rules give the numbers that one can count by hand; what is not known is refused with what is."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rm_server.backends.interface import ComputeSettings, PartsBackend
from rm_server.backends.items import Batch, ChatMessage, RenderedText
from rm_server.backends.loading import load_backend, load_encoder
from rm_server.backends.rules.rule_list import read_rules
from rm_server.backends.tokenization.content_checks import MAX_CHARACTERS
from rm_server.errors import (
    ArtifactUnreadable,
    EmptyItem,
    InvalidTokenIds,
    ItemTooLong,
    RmError,
    UnsupportedArtifact,
    UnsupportedContent,
)
from rm_server.registry.manifest import Manifest

MANIFEST = Manifest(kind="rules", transform="rule")
EVEN = {"type": "token_id_share", "modulus": 2, "residue": 0}


def write(folder: Path, *rules: Any) -> Path:
    (folder / "rules.json").write_text(json.dumps({"rules": rules}))
    return folder


def score(folder: Path, *completions: Any, prompt: Any = "", manifest: Manifest = MANIFEST) -> list[float]:
    encoder = load_encoder(folder, manifest)
    items = [encoder.encode(prompt, completion) for completion in completions]
    scores: list[float] = load_backend(folder, manifest, ComputeSettings()).score(Batch.of(items)).tolist()
    return scores


@pytest.mark.parametrize(
    ("rule", "completion", "expected"),
    [
        (EVEN, (2, 4, 5), 2 / 3),
        ({"type": "token_id_share", "modulus": 3, "residue": 2}, (2, 4, 5, 8), 3 / 4),
        ({"type": "token_id_share", "ids": [7, 9]}, (7, 7, 9, 1), 3 / 4),
        ({"type": "token_id_share", "ids": []}, (7,), 0.0),
        ({"type": "length", "unit": "tokens", "min": 2, "max": 3}, (1,), 0.0),
        ({"type": "length", "unit": "tokens", "min": 2, "max": 3}, (1, 1, 1), 1.0),
        ({"type": "length", "min": 3, "max": 4, "soft": 4}, "one two", 0.75),
        ({"type": "length", "min": 3, "max": 4, "soft": 4}, "it's two, three", 1.0),
        ({"type": "length", "min": 3, "max": 4, "soft": 4}, "1 2 3 4 5 6 7", 0.25),
        ({"type": "length", "min": 3, "max": 4, "soft": 4}, "1 2 3 4 5 6 7 8 9 0", 0.0),
        ({"type": "length", "unit": "characters", "min": 5}, "äöüß!", 1.0),
        ({"type": "wanted_words", "words": ["cat", "Dog"]}, "A dog, no CATS.", 0.5),
        ({"type": "wanted_words", "words": ["cat", "Dog"], "ignore_case": False}, "A dog, a cat.", 0.5),
        ({"type": "forbidden_words", "words": ["very"]}, "Very, very good, everyvery.", 2.0),
        ({"type": "regex", "pattern": r"\d+"}, "a1b22", 1.0),
        ({"type": "regex", "pattern": r"\d+", "count": True}, "a1b22 ü3", 3.0),
        ({"type": "regex", "pattern": "(?i)^YES$"}, "yes\n", 0.0),
        ({"type": "regex", "pattern": "b.*b", "count": True}, "bb\nb\nb b", 2.0),
        ({"type": "regex", "pattern": "a", "count": True}, "a" * 5000, 1000.0),
        ({"type": "wanted_words", "words": ["cat", "dog"], "count": True}, "A cat, a Cat, a dog!", 3.0),
        ({"type": "wanted_words", "words": ["straße", "ÉTÉ"]}, "STRASSE en été", 1.0),
        ({"type": "wanted_words", "words": ["İstanbul", "izmir"]}, "İstanbul ve İzmir", 0.5),
        ({"type": "forbidden_words", "words": ["very"], "count": False}, "Very, very good.", 1.0),
        ({"type": "forbidden_words", "words": ["very"], "count": False}, "Good.", 0.0),
        ({"type": "repetition", "n": 1}, "a b a b", 0.5),
        ({"type": "repetition", "n": 3, "unit": "tokens"}, (1, 2, 3, 1, 2, 3), 0.25),
        ({"type": "repetition", "n": 3}, "a b", 0.0),
        ({"type": "language", "languages": ["en"]}, "What a fine day it is to walk along the river.", 1.0),
        ({"type": "language", "languages": ["de", "fr"]}, "Das ist ein schöner Tag für einen Spaziergang.", 1.0),
        ({"type": "language", "languages": ["en"]}, "Das ist ein schöner Tag für einen Spaziergang.", 0.0),
        ({"type": "language", "languages": ["af"]}, "12 34 56", 0.0),
        ({"type": "distinct_n", "n": 1}, "a b a b", 0.5),
        ({"type": "distinct_n", "n": 2}, "a b a b", 2 / 3),
        ({"type": "distinct_n", "n": 9}, "a b", 1.0),
        ({"type": "distinct_n", "n": 1, "unit": "tokens"}, (5, 5, 5, 5), 0.25),
    ],
)
def test_each_kind_counts_what_it_says(tmp_path: Path, rule: Any, completion: Any, expected: float) -> None:
    assert score(write(tmp_path, rule), completion) == [expected]


def test_the_score_is_the_weighted_sum_of_clipped_parts(tmp_path: Path) -> None:
    folder = write(
        tmp_path,
        {**EVEN, "gain": 10, "bias": -1, "clip": [0, 5], "weight": 2},
        {"name": "sevens", "type": "token_id_share", "ids": [7], "weight": -0.5},
    )
    # 10 * 3/4 - 1 = 6.5, clipped to 5, twice; minus half of 1/4. Then -1 clipped to 0; minus half of 1.
    assert score(folder, (2, 4, 6, 7), (7, 7)) == [10 - 0.125, -0.5]


def test_a_rule_looks_at_the_prompt_or_at_both(tmp_path: Path) -> None:
    words = {"type": "length", "min": 3, "max": 3}
    folder = write(tmp_path, {**words, "of": "prompt"}, {**words, "name": "both", "of": "both", "weight": 10})
    assert score(folder, "x", "x y", prompt="a b c") == [1.0, 1.0]
    assert score(folder, "y", "y z", prompt="x x") == [10.0, 0.0]
    with pytest.raises(EmptyItem, match="length looks at the prompt"):
        score(folder, "x")
    ids = write(tmp_path, {**EVEN, "of": "prompt"}, {**EVEN, "name": "both", "of": "both", "weight": 10})
    assert score(ids, (1,), (2, 2), prompt=(2, 3)) == [0.5 + 10 * (1 / 3), 0.5 + 7.5]
    assert load_encoder(ids, MANIFEST).encode_usual([((), (1,))]) == [None]
    cut = Manifest(kind="rules", transform="rule", max_tokens=2, truncation="keep_end")
    with pytest.raises(EmptyItem, match="no prompt left after truncation"):
        score(ids, (1, 2, 3), prompt=(2, 3), manifest=cut)


def test_several_rules_tell_their_parts(tmp_path: Path) -> None:
    folder = write(tmp_path, {**EVEN, "gain": 2, "weight": 3}, {"name": "sevens", "type": "token_id_share", "ids": [7]})
    encoder, backend = load_encoder(folder, MANIFEST), load_backend(folder, MANIFEST, ComputeSettings())
    assert encoder.parts == (("token_id_share", 3.0), ("sevens", 1.0))
    assert isinstance(backend, PartsBackend)
    scores, parts = backend.score_parts(Batch.of([encoder.encode((), (7, 2)), encoder.encode((), (2,))]))
    assert (scores.tolist(), parts.tolist()) == ([3.5, 6.0], [[1.0, 0.5], [2.0, 0.0]])
    one = write(tmp_path, EVEN)
    assert load_encoder(one, MANIFEST).parts == ()
    assert not isinstance(load_backend(one, MANIFEST, ComputeSettings()), PartsBackend)


@pytest.mark.parametrize(
    "rule",
    [
        {"type": "regex", "pattern": "(x+x+)+y"},
        {"type": "regex", "pattern": "(((a{1,100}){1,9}))b"},
        {"type": "regex", "pattern": "a(?:.*b)?", "count": True},
        {"type": "regex", "pattern": "a*?", "count": True},
        {"type": "wanted_words", "words": ["a"]},
        {"type": "forbidden_words", "words": ["a"]},
        {"type": "length"},
        {"type": "distinct_n", "n": 64},
        {"type": "repetition", "n": 64},
        {"type": "language", "languages": ["en"]},
    ],
    ids=str,
)
@pytest.mark.parametrize("text", ["a", "x", "a'", "a b ", "b\n", "á\u0301\u0323", "İ"], ids=ascii)
def test_a_text_of_a_megabyte_does_not_stall(tmp_path: Path, rule: Any, text: str) -> None:
    """What takes more than linear time here would take years, or all of the memory."""
    (value,) = score(write(tmp_path, rule), text * (1_000_000 // len(text)))
    assert math.isfinite(value)


def test_a_text_of_many_megabytes_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path, {"type": "distinct_n"})
    half = "a" * (MAX_CHARACTERS // 2 + 1)
    for limit in (0, 4):
        manifest = Manifest(kind="rules", transform="rule", max_tokens=limit)
        with pytest.raises(ItemTooLong, match="2000002 characters; at most 2000000 are looked at"):
            load_encoder(folder, manifest).encode(half, half, "keep_start")
    longer = Manifest(kind="rules", transform="rule", max_tokens=MAX_CHARACTERS)
    assert load_encoder(folder, longer).encode(half, half, "keep_start").truncated


def test_only_the_completion_counts_and_the_batch_does_not(tmp_path: Path) -> None:
    folder = write(tmp_path, EVEN)
    completions = [tuple(np.random.default_rng(n).integers(0, 999, 3 + n).tolist()) for n in range(20)]
    alone = [score(folder, completion)[0] for completion in completions]
    assert score(folder, *completions, prompt=(2, 2, 2)) == alone
    assert score(folder, *completions[::-1]) == alone[::-1]
    assert alone[3] == sum(index % 2 == 0 for index in completions[3]) / 6


def test_messages_are_text(tmp_path: Path) -> None:
    folder = write(tmp_path, {"type": "length", "unit": "characters", "min": 3, "max": 3})
    completion = (ChatMessage("assistant", "a"), ChatMessage("tool", "b"))
    assert score(folder, completion, prompt=(ChatMessage("user", "hello"),)) == [1.0]
    with pytest.raises(EmptyItem, match="no content"):
        score(folder, (ChatMessage("assistant", ""),))


def test_a_rendered_text_is_parted_where_its_prompt_came(tmp_path: Path) -> None:
    length = {"type": "length", "unit": "words", "max": 2, "soft": 10}
    folder = write(tmp_path, length, {"name": "asked", "type": "wanted_words", "words": ["fox"], "of": "prompt"})
    texts = [RenderedText(text, "A fox? ") for text in ("A fox? It ran.", "A fox? It ran, it ran.")]
    assert score(folder, *texts) == score(folder, "It ran.", "It ran, it ran.", prompt="A fox? ") == [2.0, 1.8]
    encoder = load_encoder(folder, MANIFEST)
    with pytest.raises(EmptyItem, match="no completion"):
        encoder.encode("", RenderedText("A fox? ", "A fox? "))
    for prompt in ("", "A wolf? "):
        with pytest.raises(EmptyItem, match="asked looks at the prompt"):
            encoder.encode("", RenderedText("A fox? It ran.", prompt))


def test_a_manifest_may_ask_for_sigmoid(tmp_path: Path) -> None:
    folder = write(tmp_path, {**EVEN, "gain": 4000, "bias": -2000})
    squashing = Manifest(kind="rules", transform="sigmoid")
    assert score(folder, (1,), (1, 2), (2,), manifest=squashing) == [0.0, 0.5, 1.0]


@pytest.mark.parametrize(
    ("rule", "prompt", "completion", "error", "says"),
    [
        (EVEN, "", "text", UnsupportedContent, "look at token ids, and text came"),
        (EVEN, "text", (1,), UnsupportedContent, "look at token ids, and text came"),
        (EVEN, "", (ChatMessage("user", "a"),), UnsupportedContent, "look at token ids, and text came"),
        ({"type": "distinct_n"}, "", (1,), UnsupportedContent, "look at text, and token ids came"),
        ({"type": "distinct_n"}, "", "\ud800", UnsupportedContent, "UTF-8"),
        (EVEN, (1,), (), EmptyItem, "no completion"),
        (EVEN, (), (-1,), InvalidTokenIds, "-1 at position 0"),
        (EVEN, (), (1, 2**31), InvalidTokenIds, "at position 1"),
    ],
)
def test_wrong_content(
    tmp_path: Path, rule: Any, prompt: Any, completion: Any, error: type[RmError], says: str
) -> None:
    with pytest.raises(error, match=says):
        load_encoder(write(tmp_path, rule), MANIFEST).encode(prompt, completion)


def test_a_limit_cuts_ids_and_characters(tmp_path: Path) -> None:
    limited = Manifest(kind="rules", transform="rule", max_tokens=4)
    ids = load_encoder(write(tmp_path, EVEN), limited)
    cut = ids.encode((1, 2, 3), (4, 5, 6), "keep_end")
    assert (cut.ids.tolist(), cut.completion_start, cut.truncated, cut.num_tokens) == ([3, 4, 5, 6], 1, True, 4)
    with pytest.raises(ItemTooLong):
        ids.encode((1, 2, 3), (4, 5, 6))
    text = load_encoder(write(tmp_path, {"type": "distinct_n"}), limited).encode("abc", "def", "keep_start")
    assert (text.text, text.truncated, text.num_tokens) == (("abc", "d"), True, 4)


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        (
            {"type": "token_share"},
            r"rule 1: type 'token_share' is not known; known are token_id_share, .*'token_id_share'\?",
        ),
        ({"modulus": 2}, "has no `type`"),
        ({**EVEN, "wieght": 2}, r"key 'wieght' is not known; known are name, type, weight.*Did you mean 'weight'\?"),
        ({**EVEN, "_wanted": 2}, "key '_wanted' is not known"),
        ({**EVEN, "ids": [1]}, "give either ids, or modulus and residue"),
        ({"type": "token_id_share", "modulus": 2}, "give either ids"),
        ({"type": "token_id_share"}, "give either ids"),
        ({**EVEN, "residue": 2}, "0 <= residue < modulus"),
        ({**EVEN, "modulus": 2.0}, "modulus must be a whole number"),
        ({"type": "token_id_share", "ids": ["a"]}, "ids must be a whole number, not 'a'"),
        ({"type": "token_id_share", "ids": [2**63]}, "ids must be a whole number of at most 64 bits"),
        ({"type": "length", "max": 10**400}, "max must be a finite number"),
        ({**EVEN, "weight": 10**400}, "weight must be a finite number"),
        ({**EVEN, "weight": "much"}, "weight must be a finite number, not 'much'"),
        ({**EVEN, "gain": float("nan")}, "gain must be a finite number"),
        ({**EVEN, "clip": [1, 0]}, "low must not be above high"),
        ({**EVEN, "clip": 1}, r"clip must be \[low, high\]"),
        ({**EVEN, "name": ""}, "name must be a text"),
        ({"type": "length", "min": 3, "max": 2}, "0 <= min <= max"),
        ({"type": "length", "soft": -1}, "soft must not be negative"),
        ({"type": "length", "unit": "pages"}, "unit is 'pages'; known are words, characters, tokens"),
        ({"type": "wanted_words"}, "at least one word"),
        ({"type": "wanted_words", "words": ["two words"]}, "'two words' is not one word"),
        ({"type": "regex"}, "pattern must be a text"),
        ({"type": "regex", "pattern": "("}, r"pattern '\(' is not RE2"),
        ({"type": "distinct_n", "n": 0}, "n must be at least 1"),
        ({"type": "repetition", "n": 65}, "at most 64"),
        ({"type": "regex", "pattern": r"(a)\1"}, "RE2 has no back-references"),
        ({"type": "regex", "pattern": "(?<!a)b"}, "RE2 has no look-behind"),
        ({"type": "regex", "pattern": "a(?=b)"}, "RE2 has no look-ahead"),
        ({"type": "regex", "pattern": "a" * 2001}, "2001 characters; at most 2000"),
        ({"type": "regex", "pattern": "((a{1,100}){1,10}){1,10}"}, "is not RE2|at most 2000 are allowed"),
        ({"type": "regex", "pattern": "a", "count": 1}, "count must be true or false"),
        ({"type": "language"}, "languages must be a list"),
        ({"type": "language", "languages": ["english"]}, "'english' is not known; known are .*, en, "),
        ({"type": "language", "languages": ["en"], "min_confidence": 0}, "above 0 and at most 1"),
        ({**EVEN, "of": "both sides"}, "of is 'both sides'; known are completion, prompt, both"),
        ("even", "rule 1 is no JSON object"),
    ],
)
def test_specs_that_make_no_sense(tmp_path: Path, rule: Any, says: str) -> None:
    with pytest.raises(UnsupportedArtifact, match=says):
        read_rules(write(tmp_path, rule))


def test_lists_that_make_no_sense(tmp_path: Path) -> None:
    with pytest.raises(ArtifactUnreadable, match=r"has no rules\.json"):
        read_rules(tmp_path)
    with pytest.raises(UnsupportedArtifact, match="at least one rule"):
        read_rules(write(tmp_path))
    with pytest.raises(UnsupportedArtifact, match="'token_id_share' is used twice"):
        read_rules(write(tmp_path, EVEN, EVEN))
    with pytest.raises(UnsupportedArtifact, match="not at both"):
        read_rules(write(tmp_path, EVEN, {"type": "distinct_n"}))
    (tmp_path / "rules.json").write_text('{"rules": [], "rule": []}')
    with pytest.raises(UnsupportedArtifact, match="key 'rule' is not known"):
        read_rules(tmp_path)


def test_the_kind_decides_who_loads(tmp_path: Path) -> None:
    with pytest.raises(ArtifactUnreadable, match=r"adapter_config\.json cannot be read"):
        load_backend(write(tmp_path, EVEN), Manifest(kind="lora"), ComputeSettings())


def test_rules_are_served_without_torch(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path\n"
        "from rm_server.backends.loading import ComputeSettings, load_backend, load_encoder\n"
        "from rm_server.registry.manifest import Manifest\n"
        f"folder, manifest = Path({str(write(tmp_path, EVEN))!r}), Manifest(kind='rules')\n"
        "load_encoder(folder, manifest), load_backend(folder, manifest, ComputeSettings())\n"
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
