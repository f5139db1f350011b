"""Versions load, labels move and old versions unload under load: nobody's request fails or meets the wrong version."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest
from rm_api.v1 import models_pb2, scoring_pb2, scoring_pb2_grpc
from running_server import LOCAL_ONLY, RunningServer, running, score_request

from rm_server.config import EngineSettings

NUM_CLIENTS = 8
TEXTS = tuple(f"text number {number}" for number in range(16))


@dataclass(frozen=True)
class Reply:
    """One answered call: when it was sent and answered, and what came."""

    sent: float
    received: float
    digest: str
    scores: tuple[float, ...]
    texts: tuple[str, ...]


@dataclass
class Client:
    """A training job with a channel of its own that scores by the label until it is told to stop."""

    server: RunningServer
    number: int
    stop: threading.Event
    replies: list[Reply] = field(default_factory=list)
    failures: list[object] = field(default_factory=list)

    def run(self) -> None:
        with grpc.insecure_channel(self.server.app.grpc_address, LOCAL_ONLY) as channel:
            score = scoring_pb2_grpc.ScoringServiceStub(channel).Score
            turn = self.number
            while not self.stop.is_set():
                texts = (TEXTS[turn % len(TEXTS)], TEXTS[(turn + 5) % len(TEXTS)])
                options = scoring_pb2.ScoreOptions(bypass_cache=turn % 2 == 0)
                request = score_request("helpfulness@stable", *texts, options=options, run=f"run-{self.number}")
                sent = time.monotonic()
                try:
                    answer = score(request, timeout=60)
                    scores = tuple(result.score.value for result in answer.results if result.HasField("score"))
                    self.replies.append(Reply(sent, time.monotonic(), answer.digest, scores, texts))
                except grpc.RpcError as error:
                    self.failures.append(error)
                turn += 1


@dataclass(frozen=True)
class Move:
    """The label was given to this digest at some moment between ``began`` and ``ended``."""

    began: float
    ended: float
    digest: str


def may_have_been_labelled(reply: Reply, moves: list[Move]) -> bool:
    """Whether the label had the reply's digest at some moment between its send and its reply."""
    for move, following in zip(moves, [*moves[1:], None], strict=True):
        until = following.ended if following is not None else float("inf")
        if move.digest == reply.digest and move.began <= reply.received and reply.sent <= until:
            return True
    return False


@pytest.mark.parametrize(("workers", "num_loads"), [(0, 6), (1, 12)], ids=["in process", "a worker"])
def test_no_request_fails_or_meets_a_version_that_its_label_did_not_name(
    tmp_path: Path, versions: list[Path], workers: int, num_loads: int
) -> None:
    with running(tmp_path, engine=EngineSettings(workers=workers, threads_per_worker=1)) as server:
        deployed = server.deploy("helpfulness", *versions)
        expected = {
            version.digest: dict(
                zip(
                    TEXTS,
                    [r.score.value for r in server.score(f"helpfulness@{version.version}", *TEXTS).results],
                    strict=True,
                )
            )
            for version in deployed
        }
        for version in deployed[1:]:
            server.models.UnloadVersion(models_pb2.UnloadVersionRequest(selector=f"helpfulness@{version.version}"))
        stop = threading.Event()
        clients = [Client(server, number, stop) for number in range(NUM_CLIENTS)]
        threads = [threading.Thread(target=client.run) for client in clients]
        for thread in threads:
            thread.start()

        moves = [Move(0.0, 0.0, deployed[0].digest)]
        previous = deployed[0]
        for turn in range(1, num_loads + 1):
            version = deployed[turn % len(deployed)]
            selector = f"helpfulness@{version.version}"
            label = models_pb2.SetLabelRequest(model="helpfulness", label="stable", version=version.version)
            if turn % 2:
                server.models.LoadVersion(models_pb2.LoadVersionRequest(selector=selector))
            else:
                label.load = label.unload_previous = True
            began = time.monotonic()
            server.models.SetLabel(label)
            moves.append(Move(began, time.monotonic(), version.digest))
            if turn % 2:
                server.models.UnloadVersion(models_pb2.UnloadVersionRequest(selector=f"helpfulness@{previous.version}"))
            previous = version
        stop.set()
        for thread in threads:
            thread.join()

    replies = [reply for client in clients for reply in client.replies]
    assert [failure for client in clients for failure in client.failures] == []
    assert all(len(client.replies) > num_loads for client in clients)
    assert {reply.digest for reply in replies} == set(expected)
    assert [reply for reply in replies if not may_have_been_labelled(reply, moves)] == []
    for reply in replies:
        assert reply.scores == pytest.approx([expected[reply.digest][text] for text in reply.texts], abs=1e-5)


def test_the_check_of_labels_can_fail() -> None:
    moves = [Move(0.0, 0.0, "old"), Move(5.0, 6.0, "new")]

    def reply(sent: float, received: float, digest: str) -> Reply:
        return Reply(sent, received, digest, (), ())

    assert may_have_been_labelled(reply(1, 2, "old"), moves)
    assert may_have_been_labelled(reply(5.5, 7, "old"), moves)
    assert may_have_been_labelled(reply(4, 5.1, "new"), moves)
    assert not may_have_been_labelled(reply(6.1, 7, "old"), moves)
    assert not may_have_been_labelled(reply(1, 4.9, "new"), moves)
    assert not may_have_been_labelled(reply(1, 2, "other"), moves)
