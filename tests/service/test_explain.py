"""One item looked into over a socket: the text, the tokens and the score are those of Score."""

from __future__ import annotations

import asyncio
import io
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from rm_api.v1 import errors_pb2, experiments_pb2, models_pb2, scoring_pb2
from running_server import RunningServer, error_of, make_rules_version, make_version, running

from ppo_client import AsyncRewardClient, RewardClient, errors
from rm_server.backends.rules.backend import RulesEncoder
from rm_server.cli import main
from rm_server.registry.manifest import Manifest, write_manifest
from rm_server.registry.records import CalibrationRecord

PROMPT, COMPLETION = "Tell me a story.", " Once upon a time."
Token = scoring_pb2.ExplainedToken


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, versions: list[Path]) -> Iterator[RunningServer]:
    """helpfulness@1 (stable) and @2, short@1 of at most 12 tokens, rules@1 and mix@1, a composite."""
    root = tmp_path_factory.mktemp("explain")
    template = "Q: {prompt} A:{completion}"
    short = make_version(root / "short", 5, template=template, max_tokens=12, truncation="keep_end")
    rules = make_rules_version(
        root / "rules",
        {"name": "brevity", "type": "length", "unit": "words", "max": 4},
        {"name": "swearing", "type": "forbidden_words", "words": ["damn"], "weight": 2.0},
    )
    with running(root / "home") as server:
        server.deploy("helpfulness", *versions[:2])
        server.deploy("short", short)
        server.deploy("rules", rules)
        server.deploy("mix", _make_composite(root / "mix"))
        yield server


def _make_composite(folder: Path) -> Path:
    folder.mkdir()
    components: list[dict[str, Any]] = [
        {"name": "help", "version": "helpfulness@stable", "weight": 0.5, "gain": 3.0},
        {"name": "brief", "rule": {"type": "length", "unit": "words", "max": 3}, "weight": -2.0},
    ]
    (folder / "composite.json").write_text(json.dumps({"components": components}))
    write_manifest(folder, Manifest("composite", transform="weighted_sum"))
    return folder


def explain(
    server: RunningServer, selector: str, completion: str = COMPLETION, prompt: str = PROMPT, **request: Any
) -> scoring_pb2.ExplainResponse:
    return server.scoring.Explain(
        scoring_pb2.ExplainRequest(
            model=selector,
            prompt=scoring_pb2.Content(text=prompt),
            completion=scoring_pb2.Content(text=completion),
            **request,
        ),
        timeout=60,
    )


@pytest.mark.parametrize("selector", ["helpfulness@2", "helpfulness", "short@stable", "rules", "mix"])
def test_the_score_is_the_one_that_score_gives(server: RunningServer, selector: str) -> None:
    explained = explain(server, selector)
    answer = server.score(selector, COMPLETION, prompt=PROMPT)
    assert explained.result == answer.results[0]
    assert (explained.model, explained.version, explained.digest) == (answer.model, answer.version, answer.digest)
    assert explained.transform == answer.transform
    assert explained.result.score.value != 0


def test_explanations_leave_the_catalog_its_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on = threading.Event(), threading.Event()
    explain_at_once = RulesEncoder.explain

    def explain_late(*arguments: Any) -> Any:
        begun.set()
        go_on.wait(60)
        return explain_at_once(*arguments)

    monkeypatch.setattr(RulesEncoder, "explain", explain_late)
    with running(tmp_path / "home") as server:
        server.deploy("rules", make_rules_version(tmp_path / "rules", {"name": "brevity", "type": "length", "max": 4}))
        server.loop.call_soon_threadsafe(server.loop.set_default_executor, ThreadPoolExecutor(1))
        with ThreadPoolExecutor(1) as caller:
            explained = caller.submit(explain, server, "rules")
            try:
                assert begun.wait(30)
                assert server.models.ListHistory(models_pb2.ListHistoryRequest(model="rules"), timeout=30).entries
                assert not explained.done()
            finally:
                go_on.set()
            assert explained.result().result.HasField("score")


def test_the_text_and_the_tokens(server: RunningServer) -> None:
    explained = explain(server, "short", "the end of the line")
    assert list(explained.templated_text) == [f"Q: {PROMPT} A:the end of the line"]
    assert len(explained.tokens) == explained.result.num_tokens == 12 < explained.num_tokens_before_truncation
    assert explained.result.truncated
    assert explained.truncation == scoring_pb2.TRUNCATION_KEEP_END
    parts = {token.part for token in explained.tokens}
    assert {Token.PART_COMPLETION, Token.PART_ADDED} <= parts
    assert explained.tokens[-1].part == Token.PART_ADDED  # EOS
    ids = scoring_pb2.ScoreRequest(model="short@1")
    ids.groups.add().completions.add().token_ids.ids.extend(token.id for token in explained.tokens)
    assert server.scoring.Score(ids).results[0].score.value == pytest.approx(explained.result.score.value, abs=1e-5)


def test_an_item_that_cannot_be_scored_says_why(server: RunningServer) -> None:
    refuse = scoring_pb2.ScoreOptions(truncation=scoring_pb2.TRUNCATION_REFUSE)
    explained = explain(server, "short", "word " * 30, options=refuse)
    assert explained.result.error.reason == errors_pb2.ERROR_REASON_ITEM_TOO_LONG
    assert not explained.tokens
    code, _ = error_of(lambda: explain(server, "nothing"))
    assert code is grpc.StatusCode.NOT_FOUND


def test_rules_show_what_they_look_at_and_their_parts(server: RunningServer) -> None:
    explained = explain(server, "rules", "damn short")
    assert list(explained.templated_text) == [PROMPT, "damn short"]
    assert [part.name for part in explained.result.score.components] == ["brevity", "swearing"]
    assert not explained.components


def test_a_composite_is_explained_part_by_part(server: RunningServer) -> None:
    explained = explain(server, "mix", "only three words")
    help_part, brief = explained.components
    alone = explain(server, "helpfulness@1", "only three words")
    assert help_part.result == alone.result
    assert (help_part.tokens, help_part.digest) == (alone.tokens, alone.digest)
    assert help_part.chosen_by == "component 'help' of mix@1"
    assert (brief.version, brief.result.score.value) == (0, 1.0)
    assert brief.transform == scoring_pb2.TRANSFORM_RULE
    assert explained.result.score.value == pytest.approx(0.5 * 3.0 * alone.result.score.value - 2.0, abs=1e-6)
    assert not explained.tokens


def test_it_says_what_chose_the_version(server: RunningServer) -> None:
    assert explain(server, "helpfulness@2").chosen_by == "its number, 2"
    assert explain(server, "helpfulness").chosen_by == "the label 'stable'"
    server.experiments.SetPin(
        experiments_pb2.SetPinRequest(pin=experiments_pb2.Pin(run="pinned", model="helpfulness", version=2))
    )
    explained = explain(server, "helpfulness", run="pinned")
    assert (explained.version, explained.chosen_by) == (2, "the pin of the run 'pinned'")
    server.experiments.RegisterRun(experiments_pb2.RegisterRunRequest(run="holder", model="helpfulness"))
    assert explain(server, "helpfulness", run="holder").chosen_by == "the lease of the run 'holder'"


def test_asking_gives_no_lease_and_counts_in_nobodys_statistics(server: RunningServer) -> None:
    before = server.metric("rm_items_total", model="helpfulness", version="1", reason="ok")
    explain(server, "helpfulness", run="curious")
    runs = server.experiments.ListRuns(experiments_pb2.ListRunsRequest(model="helpfulness")).runs
    assert "curious" not in {status.run for status in runs}
    assert server.metric("rm_items_total", model="helpfulness", version="1", reason="ok") == before


def test_calibration_is_shown_and_used_only_if_asked(tmp_path: Path, versions: list[Path]) -> None:
    with running(tmp_path / "home") as server:
        server.deploy("helpfulness", versions[0])
        server.calibrate("helpfulness", CalibrationRecord("c" * 64, 2.0, 10.0))
        raw = explain(server, "helpfulness")
        calibrated = explain(server, "helpfulness", options=scoring_pb2.ScoreOptions(calibrated=True))
    assert raw.calibration == calibrated.calibration
    assert calibrated.calibration.gain == 2.0
    assert calibrated.result.score.value == pytest.approx(2 * raw.result.score.value + 10)


def test_the_client(server: RunningServer) -> None:
    with RewardClient(server.app.grpc_address) as client:
        explained = client.explain("short", prompt=PROMPT, completion="the end of the line")
        assert explained.score == client.score("short", prompts=[PROMPT], completions=["the end of the line"]).values[0]
        assert (explained.version, explained.chosen_by) == (1, "the label 'stable'")
        assert explained.templated_text == (f"Q: {PROMPT} A:the end of the line",)
        assert [token.part for token in explained.tokens[-2:]] == ["completion", "added"]
        assert explained.is_truncated
        mixed = client.explain("mix", prompt=PROMPT, completion=COMPLETION)
        assert [part.transform for part in mixed.components] == ["raw_logit", "rule"]
        too_long = client.explain("short", prompt=PROMPT, completion="word " * 30, truncation="refuse")
        assert isinstance(too_long.error, errors.ItemTooLong)
        with pytest.raises(errors.ItemTooLong):
            _ = too_long.score

    async def same() -> float:
        async with AsyncRewardClient(server.app.grpc_address) as client:
            return (await client.explain("short", prompt=PROMPT, completion="the end of the line")).score

    assert asyncio.run(same()) == explained.score


def test_the_command(
    server: RunningServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    where = ["--server", server.app.grpc_address]
    (tmp_path / "story.txt").write_bytes(b"the end of\r\nthe line\r\n")
    arguments = ["explain", "short", "--prompt", PROMPT, "--completion", f"@{tmp_path}/story.txt", *where]
    assert main(arguments) == 0
    output = capsys.readouterr().out
    score = server.score("short", "the end of\r\nthe line", prompt=PROMPT).results[0].score.value
    assert f"score {score:.9g} (raw logit)" in output
    assert "chosen by the label 'stable'" in output
    assert "truncated by keep_end: 12 of" in output
    assert main([*arguments, "--json"]) == 0
    explained = json.loads(capsys.readouterr().out)
    assert (explained["score"], explained["truncated"], len(explained["tokens"])) == (score, True, 12)
    assert explained["templated_text"][-1].endswith("the end of\r\nthe line")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"only three words")))
    assert main(["explain", "mix", "--completion", "@-", *where]) == 0
    assert "brief: -2 × 1 = -2" in capsys.readouterr().out
    assert main([*arguments, "--truncation", "refuse"]) == 1
    assert "no score: The item has" in capsys.readouterr().out
    assert main([*arguments, "--truncation", "refuse", "--json"]) == 1
    assert "score" not in json.loads(capsys.readouterr().out)
    assert main(["explain", "short", "--completion", "@nowhere.txt", *where]) == 1
    assert "nowhere.txt cannot be read" in capsys.readouterr().err
