from __future__ import annotations

import argparse
import errno
import fcntl
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import grpc
import pyarrow
import pytest
from pyarrow import csv
from rm_api.v1 import errors_pb2, scoring_pb2

from ppo_client import RewardClient, cli, errors
from ppo_client.client.data_files import rows_of
from ppo_client.client.row_writer import write_rows
from ppo_client.client.score_files import ScoreJob, score_file
from ppo_client.commands import score

from .conftest import QUICK
from .fake_server import DIGESTS, FakeServer, change, fail, fail_items, usual, wait_until_cancelled

NUM_ROWS = 23
ROWS: list[dict[str, Any]] = [{"prompt": "p", "completion": "x" * number, "id": number} for number in range(NUM_ROWS)]


@pytest.fixture
def client(server: FakeServer) -> Iterator[RewardClient]:
    with RewardClient(server.address, retry=QUICK, timeout_s=20.0) as client:
        yield client


@pytest.fixture
def job(tmp_path: Path) -> ScoreJob:
    write_rows(tmp_path / "in.jsonl", ROWS)
    return ScoreJob(tmp_path / "in.jsonl", tmp_path / "out.jsonl", "length@stable", batch_size=5)


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [row for _, row in rows_of(path)]


def but(job: ScoreJob, **changes: Any) -> ScoreJob:
    return ScoreJob(**({name: getattr(job, name) for name in ScoreJob.__slots__} | changes))


def expected(number: int) -> dict[str, Any]:
    return ROWS[number] | {
        "score": float(number),
        "score_truncated": False,
        "score_version": "length@1",
        "score_digest": DIGESTS[1],
    }


def test_every_row_gets_its_score(server: FakeServer, client: RewardClient, job: ScoreJob) -> None:
    progress: list[tuple[int, int, int]] = []
    summary = score_file(client, job, on_progress=lambda *numbers: progress.append(numbers))
    assert read_rows(job.output) == [expected(number) for number in range(NUM_ROWS)]
    assert (summary.rows, summary.scored, summary.failed, summary.resumed) == (NUM_ROWS, NUM_ROWS, 0, 0)
    assert (summary.model, summary.version, summary.digest) == ("length", 1, DIGESTS[1])
    assert [done for done, _, _ in progress] == [0, 5, 10, 15, 20, 23]
    assert sorted(path.name for path in job.output.parent.iterdir()) == ["in.jsonl", "out.jsonl"]


def test_the_version_of_the_first_rows_scores_all(server: FakeServer, client: RewardClient, job: ScoreJob) -> None:
    score_file(client, job)
    first, *others = server.requests
    assert first.model == "length@stable"
    assert {(request.model, request.options.expected_digest) for request in others} == {("length@1", DIGESTS[1])}


def test_an_interrupted_run_goes_on_where_it_was_with_the_version_it_had(
    server: FakeServer, client: RewardClient, job: ScoreJob
) -> None:
    server.will(usual, usual, usual, *[fail(grpc.StatusCode.INTERNAL, "INTERNAL")] * 2)
    with pytest.raises(errors.ServerDefect):
        score_file(client, job)
    assert not job.output.exists()
    journal = job.output.with_name("out.jsonl.partial")
    done = len(journal.read_bytes().splitlines()) - 1
    assert 5 <= done < NUM_ROWS
    journal.write_bytes(journal.read_bytes() + b'{"score": 1')  # torn off by a kill
    server.version = 2  # the label moved
    server.seen.clear()
    server.script.clear()
    summary = score_file(client, job)
    assert (summary.resumed, summary.version) == (done, 1)
    assert read_rows(job.output) == [expected(number) for number in range(NUM_ROWS)]
    sent = sum(len(group.completions) for request in server.requests for group in request.groups)
    assert sent == NUM_ROWS - done


def test_rows_of_two_calibrations_do_not_get_into_one_file(
    server: FakeServer, client: RewardClient, job: ScoreJob
) -> None:
    calibrated = but(job, calibrated=True)
    server.will(usual)
    server.always = change(lambda response: setattr(response.calibration, "digest", "d" * 64))
    with pytest.raises(errors.VersionChanged, match=r"length@1 was calibrated anew: .* dddddddddddd, .* cccccccccccc"):
        score_file(client, calibrated)
    with pytest.raises(errors.VersionChanged, match="remove that file"):
        score_file(client, calibrated)
    server.always = None
    summary = score_file(client, calibrated)
    assert summary.resumed == 5
    assert [row["score"] for row in read_rows(job.output)] == [10.0 * number for number in range(NUM_ROWS)]


def test_a_kill_before_the_first_rows_leaves_nothing_in_the_way(client: RewardClient, job: ScoreJob) -> None:
    job.output.with_name("out.jsonl.partial").write_bytes(b'{"model": "len')
    assert score_file(client, job).resumed == 0


def test_another_job_does_not_go_on_with_this_ones_journal(
    server: FakeServer, client: RewardClient, job: ScoreJob
) -> None:
    server.will(usual)
    server.always = fail(grpc.StatusCode.INTERNAL, "INTERNAL")
    with pytest.raises(errors.ServerDefect):
        score_file(client, job)
    with pytest.raises(errors.InvalidFile, match="another model and calibrated"):
        score_file(client, but(job, model="other", calibrated=True))
    with pytest.raises(errors.InvalidFile, match="another rendered"):
        score_file(client, but(job, rendered=True))
    write_rows(job.source, ROWS[:-1])
    with pytest.raises(errors.InvalidFile, match="another input_sha256"):
        score_file(client, job)


def test_a_journal_of_before_there_was_an_option_is_gone_on_with(
    server: FakeServer, client: RewardClient, job: ScoreJob
) -> None:
    server.will(usual)
    server.always = fail(grpc.StatusCode.INTERNAL, "INTERNAL")
    with pytest.raises(errors.ServerDefect):
        score_file(client, job)
    journal = job.output.with_name("out.jsonl.partial")
    journal.write_text(journal.read_text().replace('"rendered": false, ', ""))
    server.always = None
    assert score_file(client, job).resumed == 5


def test_texts_that_were_rendered_before_are_sent_as_such(
    server: FakeServer, client: RewardClient, job: ScoreJob
) -> None:
    score_file(client, but(job, rendered=True))
    assert all(request.options.rendered for request in server.requests)
    sent = [text.text for request in server.requests for group in request.groups for text in group.completions]
    assert sorted(sent) == sorted(f"{row['prompt']}{row['completion']}" for row in ROWS)


def test_a_row_without_a_score_ends_the_run(server: FakeServer, client: RewardClient, job: ScoreJob) -> None:
    def behave(server: FakeServer, request: Any, context: grpc.ServicerContext) -> scoring_pb2.ScoreResponse | None:
        is_second = request.groups[0].completions[0].text == "x" * 5  # later ones may come before it
        return fail_items(2, reason="ITEM_TOO_LONG")(server, request, context) if is_second else None

    server.always = behave
    with pytest.raises(errors.ItemsFailed, match="no score for row 8, ItemTooLong: as told; correct it, or") as caught:
        score_file(client, job)
    assert set(caught.value.errors) == {8}
    assert not job.output.exists()


def test_or_has_an_error_and_no_number_where_that_was_asked_for(
    server: FakeServer, client: RewardClient, job: ScoreJob
) -> None:
    server.will(fail_items(2, reason="ITEM_TOO_LONG"))
    summary = score_file(client, but(job, keep_going=True))
    assert (summary.scored, summary.failed) == (NUM_ROWS - 1, 1)
    rows = read_rows(job.output)
    assert "score" not in rows[2]
    assert rows[2]["score_error"] == "ItemTooLong: as told"
    assert [row for row in rows if row["id"] != 2] == [expected(number) for number in range(NUM_ROWS) if number != 2]


@pytest.mark.parametrize(
    ("batch_size", "script", "failed"),
    [(1, [], {0, 2, 3}), (5, [fail_items(1, reason="ITEM_TOO_LONG")], {0, 2, 3, 4})],
)
def test_a_row_that_cannot_be_sent_has_an_error_too(
    server: FakeServer, client: RewardClient, job: ScoreJob, batch_size: int, script: list[Any], failed: set[int]
) -> None:
    wrong: dict[int, dict[str, Any]] = {0: {"completion": None}, 2: {"prompt": [1]}, 3: {"completion": 7}}
    write_rows(job.source, [row | wrong.get(number, {}) for number, row in enumerate(ROWS)])
    server.will(*script)
    summary = score_file(client, but(job, keep_going=True, batch_size=batch_size))
    assert (summary.scored, summary.failed) == (NUM_ROWS - len(failed), len(failed))
    rows = read_rows(job.output)
    told = {row["id"]: row["score_error"] for row in rows if "score" not in row}
    assert set(told) == failed
    assert told[0] == "UnsupportedContent: 'completion' is null; text, chat messages or token ids are expected"
    assert told[2].startswith("UnsupportedContent: the prompt is token_ids and the completion text")
    assert told[3].startswith("UnsupportedContent: the completion is int")
    assert [row for row in rows if row["id"] not in failed] == [
        expected(number) for number in range(NUM_ROWS) if number not in failed
    ]


def test_what_may_work_later_is_never_written_down_as_failed(
    server: FakeServer, client: RewardClient, job: ScoreJob
) -> None:
    server.always = fail_items(0, reason="WORKER_FAILED")
    write_rows(job.source, [ROWS[0] | {"completion": None}, *ROWS[1:]])
    with pytest.raises(errors.ItemsUnavailable, match="no score for row 2, WorkerFailed"):
        score_file(client, but(job, keep_going=True))


def test_nor_is_it_beside_what_cannot(server: FakeServer, client: RewardClient, job: ScoreJob) -> None:
    def behave(server: FakeServer, request: Any, context: grpc.ServicerContext) -> scoring_pb2.ScoreResponse:
        response = server.answer(request)
        for group in request.groups:
            for completion, result in zip(group.completions, response.results, strict=True):
                if reason := reasons.get(completion.text):
                    result.error.CopyFrom(errors_pb2.Error(reason=f"ERROR_REASON_{reason}", message="as told"))
        return response

    reasons = {"x": "ITEM_TOO_LONG", "x" * 3: "WORKER_FAILED"}
    server.always = behave
    with pytest.raises(errors.ItemsUnavailable, match="no score for row 4, WorkerFailed: as told") as caught:
        score_file(client, but(job, keep_going=True))
    assert set(caught.value.errors) == {4}
    del reasons["x" * 3]
    summary = score_file(client, but(job, keep_going=True))
    assert (summary.scored, summary.failed) == (NUM_ROWS - 1, 1)


def test_parquet_in_and_out(client: RewardClient, job: ScoreJob) -> None:
    pytest.importorskip("pyarrow", reason="Parquet needs pyarrow")
    write_rows(job.source.with_name("in.parquet"), ROWS)
    job = but(job, source=job.source.with_name("in.parquet"), output=job.output.with_name("out.parquet"))
    score_file(client, job)
    assert read_rows(job.output) == [expected(number) for number in range(NUM_ROWS)]


@pytest.mark.parametrize("name", ["in.csv", "in.json", "folder"])
@pytest.mark.parametrize("output", ["out.jsonl.gz", "out.parquet"])
def test_what_prompts_are_read_from_is_scored(
    server: FakeServer, client: RewardClient, job: ScoreJob, name: str, output: str
) -> None:
    write: dict[str, Callable[[Path], object]] = {
        "in.csv": lambda path: csv.write_csv(pyarrow.Table.from_pylist(ROWS), path),
        "in.json": lambda path: path.write_text(json.dumps(ROWS)),
        "folder": lambda path: datasets.Dataset.from_list(ROWS).save_to_disk(path),
    }
    job = but(job, source=job.source.with_name(name), output=job.output.with_name(output))
    write[name](job.source)
    server.will(usual, usual, *[fail(grpc.StatusCode.INTERNAL, "INTERNAL")] * 2)
    with pytest.raises(errors.ServerDefect):
        score_file(client, job)
    server.script.clear()
    assert 0 < score_file(client, job).resumed < NUM_ROWS
    assert read_rows(job.output) == [expected(number) for number in range(NUM_ROWS)]


def test_a_csv_of_numbers_is_scored_as_it_stands(server: FakeServer, client: RewardClient, job: ScoreJob) -> None:
    job = but(job, source=job.source.with_name("in.csv"))
    job.source.write_text("prompt,completion,n\n1,042,7\n2,1.50,8\n", encoding="utf-8")
    score_file(client, job)
    [row, other] = read_rows(job.output)
    assert (row["prompt"], row["completion"], row["n"]) == ("1", "042", 7)
    assert (row["score"], other["score"]) == (3.0, 4.0)  # the fake server's score is the text's length


def test_an_empty_file(client: RewardClient, job: ScoreJob) -> None:
    job.source.write_bytes(b"")
    summary = score_file(client, job)
    assert (summary.rows, summary.version, summary.digest) == (0, None, None)
    assert job.output.read_bytes() == b""


@pytest.mark.parametrize(
    ("changes", "row", "says"),
    [
        ({"completion_field": "answer"}, {}, "line 1 has no 'answer', only"),
        ({}, {"prompt": None}, "line 24: 'prompt' is null"),
        ({}, {"score": 1.0}, "line 24 has a field 'score' already"),
        ({}, {"score_error": "x"}, "line 24 has a field 'score_error' already"),
        ({}, {"completion": 7}, "line 24: the completion is int"),
        ({}, {"completion": "\ud83e"}, "line 24: the completion is no valid Unicode"),
        ({}, {"completion": [1, 2]}, "line 24: the prompt is text and the completion token_ids"),
        ({"rendered": True}, {"prompt": [1], "completion": [2]}, "line 24: rendered is for text, and token_ids came"),
    ],
)
def test_rows_that_cannot_be_scored_are_named_before_any_is(
    server: FakeServer, client: RewardClient, job: ScoreJob, changes: dict[str, Any], row: dict[str, Any], says: str
) -> None:
    write_rows(job.source, [*ROWS, ROWS[0] | row])
    with pytest.raises(errors.InvalidFile, match=says):
        score_file(client, but(job, **changes))
    assert server.seen == []
    assert [path.name for path in job.source.parent.iterdir()] == ["in.jsonl"]


def test_a_file_that_changes_meanwhile_gets_no_scores_of_other_rows(
    server: FakeServer, client: RewardClient, job: ScoreJob
) -> None:
    def changing(*request: Any) -> scoring_pb2.ScoreResponse | None:
        write_rows(job.source, reversed(ROWS))
        return usual(*request)

    server.will(changing)
    with pytest.raises(errors.InvalidFile, match=r"in.jsonl changed while its rows were scored.* remove .*partial"):
        score_file(client, job)
    assert not job.output.exists()


def test_an_output_that_is_there_is_left_alone(server: FakeServer, client: RewardClient, job: ScoreJob) -> None:
    job.output.write_text("precious")
    with pytest.raises(errors.InvalidFile, match="is there already"):
        score_file(client, job)
    assert job.output.read_text() == "precious"
    assert server.seen == []


@pytest.mark.parametrize(
    ("source", "output", "says"),
    [
        ("in.jsonl", "out.csv", "must end with"),
        ("in.jsonl", "none/out.jsonl", "there is no folder"),
        ("in.parquet", "out.jsonl", "row 1 cannot be written as JSON"),
        ("in.jsonl", "out.parquet", "the rows are no table"),
    ],
)
def test_what_cannot_be_written_is_said_before_any_row_is_scored(
    server: FakeServer, client: RewardClient, tmp_path: Path, source: str, output: str, says: str
) -> None:
    pytest.importorskip("pyarrow", reason="Parquet needs pyarrow")
    odd: Any = b"raw" if source == "in.parquet" else 5
    write_rows(tmp_path / source, [ROWS[0] | {"odd": odd}, ROWS[1] | ({"odd": ["x"]} if odd == 5 else {})])
    with pytest.raises(errors.InvalidFile, match=says):
        score_file(client, ScoreJob(tmp_path / source, tmp_path / output, "length"))
    assert server.seen == []
    assert [path.name for path in tmp_path.iterdir()] == [source]


def test_two_runs_do_not_write_to_one_journal(server: FakeServer, client: RewardClient, job: ScoreJob) -> None:
    def second(*_: int) -> None:
        with pytest.raises(errors.InvalidFile, match="is being written by another run"):
            score_file(client, job)

    score_file(client, job, on_progress=second)
    assert read_rows(job.output) == [expected(number) for number in range(NUM_ROWS)]


def test_a_file_system_without_locks_is_named(
    server: FakeServer, client: RewardClient, job: ScoreJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(errors.InvalidFile, match=r"out\.jsonl\.partial cannot be locked .* on another file system"):
        score_file(client, job)
    assert server.seen == []


def test_a_file_that_is_no_journal_is_left_alone(client: RewardClient, job: ScoreJob) -> None:
    precious = job.output.with_name("out.jsonl.partial")
    precious.write_text('{"my": "notes"}\nunfinished')
    with pytest.raises(errors.InvalidFile, match="is not what a run of this command left"):
        score_file(client, job)
    assert precious.read_text() == '{"my": "notes"}\nunfinished'


@pytest.mark.parametrize("changes", [{"batch_size": 0}, {"score_field": ""}, {"completion_field": ""}])
def test_settings_that_make_no_sense(job: ScoreJob, changes: dict[str, Any]) -> None:
    with pytest.raises(errors.InvalidSettings, match=next(iter(changes))):
        but(job, **changes)


# The command


def command(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    score.add_parser(parser.add_subparsers())
    args = parser.parse_args(["score", *arguments])
    status: int = args.run(args)
    return status


def test_the_command_prints_what_it_did(server: FakeServer, job: ScoreJob, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(str(job.source), str(job.output), "--model", "length", "--server", server.address) == 0
    said = capsys.readouterr()
    assert said.out.startswith(f"23 rows scored by length@1 (digest {DIGESTS[1][:12]}), 0 failed: ")
    assert "23 of 23 rows (100%)" in said.err


def test_the_command_says_what_is_rendered(server: FakeServer, job: ScoreJob) -> None:
    assert command(str(job.source), str(job.output), "--model", "length", "--server", server.address, "--rendered") == 0
    assert all(request.options.rendered for request in server.requests)


def test_the_command_fails_if_a_row_has(
    server: FakeServer, job: ScoreJob, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RM_TARGET", server.address)
    server.will(fail_items(2, reason="ITEM_TOO_LONG"))
    assert command(str(job.source), str(job.output), "--model", "length", "--keep-going", "--json") == 1
    assert json.loads(capsys.readouterr().out)["failed"] == 1


def test_the_command_says_how_long_it_waits_for_a_server_that_does_not_answer(
    server: FakeServer, job: ScoreJob, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ppo_client.client.score_files._WAIT_TOLD_EVERY_S", 1.0)
    server.will(wait_until_cancelled)
    arguments = ["score", str(job.source), str(job.output), "--model", "length", "--server", server.address]
    assert cli.main([*arguments, "--timeout-s", "2.5"]) == cli.ExitStatus.REWARD_SERVICE_AWAY
    told = capsys.readouterr().err.splitlines()
    assert [line for line in told if line.startswith("no answer")] == [
        "no answer for 1 s; a call is given up after 2.5 s",
        "no answer for 2 s; a call is given up after 2.5 s",
    ]
    assert told[-1].startswith("ppo-client score: ")
    assert "after 2.5 s" in told[-1]
    assert [path.name for path in job.output.parent.iterdir()] == ["in.jsonl"], "nothing was done, nothing is left"


def test_in_a_terminal_progress_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    progress = score.Progress(timeout_s=60.0)
    progress.show(0, 10, 0)
    progress.show(5, 10, 0)  # too soon to be read
    progress.show(10, 10, 1)
    progress.end()
    first, second = capsys.readouterr().err.strip("\r\n").split("\r")
    assert first.startswith("0 of 10 rows (0%)")
    assert second.startswith("10 of 10 rows (100%)")
    assert second.endswith("1 failed")
