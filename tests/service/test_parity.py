"""For every family, the service gives what transformers' own forward gives for one item, whatever the batch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch
from running_server import RunningServer, make_version, running
from transformers import AutoModelForSequenceClassification, AutoTokenizer

NUM_ITEMS = 500
LARGEST_DIFFERENCE = 1e-5
# Scores that lie closer together than rounding are in no order.
SMALLEST_GAP = 1e-6
PROMPT = "Tell me of it: "
WORDS = ("the", "line", "is", "on", "a", "fox", "river", "é", "汉", "seven", "12", "\n", "!", "It")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with running(tmp_path_factory.mktemp("home")) as server:
        yield server


def texts_of_all_lengths(max_tokens: int) -> list[str]:
    """Completions that, with the prompt, stay within the limit in a byte-level tokenizer."""
    draw = np.random.default_rng(0)
    longest = min(max_tokens or 200, 200) - len(PROMPT.encode()) - 4
    texts = []
    for length in draw.integers(2, longest, NUM_ITEMS):
        text = ""
        while len((text + " " + (word := str(draw.choice(WORDS)))).encode()) < length:
            text += " " + word
        texts.append(text or "!")
    return texts


def alone(folder: Path, texts: list[str], appends_eos: bool) -> np.ndarray:
    """One plain forward for each item: no batch, no padding, nothing of ours."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    scores = []
    with torch.no_grad():
        for text in texts:
            ids = tokenizer(PROMPT + text, return_tensors="pt")["input_ids"]
            if appends_eos:
                ids = torch.cat([ids, torch.tensor([[tokenizer.eos_token_id]])], dim=1)
            scores.append(float(model(input_ids=ids).logits[0, 0]))
    return np.array(scores)


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_scores_and_ranks_are_transformers_own(server: RunningServer, tmp_path: Path, family: str) -> None:
    folder = make_version(tmp_path / family, seed=1, family=family)
    (version,) = server.deploy(family, folder)
    texts = texts_of_all_lengths(version.max_tokens)
    pieces = [texts[:1], texts[1:9], texts[9:73], texts[73:]]
    responses = [server.score(f"{family}@1", *piece, prompt=PROMPT) for piece in pieces]
    got = np.array([result.score.value for response in responses for result in response.results])
    expected = alone(folder, texts, appends_eos=family in tiny_models.DECODERS)
    assert np.abs(got - expected).max() <= LARGEST_DIFFERENCE
    flipped = (expected[:, None] - expected[None, :] > SMALLEST_GAP) & (got[:, None] <= got[None, :])
    assert not flipped.any()
    assert np.ptp(expected) > 1e-3, "scores that are all alike would agree with anything"
