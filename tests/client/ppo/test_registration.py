"""A run holds its versions by leases: asked for at the start, again on resume, kept alive, given back at the end."""

from __future__ import annotations

import threading
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tiny_policies import FakeRewards, make_config, read_jsonl

from ppo_client.client.catalog import Lease
from ppo_client.client.errors import ServerUnreachable
from ppo_client.client.errors import VersionChanged as VersionChangedAtService
from ppo_client.ppo import PPOTrainer, assembly
from ppo_client.ppo.errors import RewardServiceAway, RunStopped, VersionChanged
from ppo_client.ppo.scores.registration import Registration
from ppo_client.ppo.scores.waiting import Patience, Stop


@dataclass
class Service(FakeRewards):
    """A client that knows of leases."""

    calls: list[tuple[str, ...]] = field(default_factory=list)
    fails: list[Exception] = field(default_factory=list)
    renewed: threading.Event = field(default_factory=threading.Event)

    def register_run(self, model: str, *, lease_s: float | None = None, expected_digest: str | None = None) -> Lease:
        self.calls.append(("register", model, (expected_digest or "")[:1]))
        if self.fails:
            raise self.fails.pop(0)
        if expected_digest not in (None, self.digest):
            raise VersionChangedAtService("it has another digest now")
        is_resumed = len(self.calls) > 1
        return Lease("exp", model, self.version, self.digest, "", None, datetime.now(UTC), is_resumed)

    def renew_lease(self, model: str) -> Lease:
        self.calls.append(("renew", model))
        self.renewed.set()
        raise ServerUnreachable("for a moment")

    def end_run(self, model: str = "") -> None:
        self.calls.append(("end", model))

    def close(self) -> None:
        self.calls.append(("close",))


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Service:
    service = Service()
    monkeypatch.setattr(assembly, "connect", lambda reward, run: service)
    return service


def test_a_bare_name_is_held_from_start_to_end(folder: Path, service: Service) -> None:
    PPOTrainer(make_config(folder)).train()
    assert service.calls == [("register", "even", ""), ("end", "even"), ("close",)]


def test_a_resumed_run_asks_for_the_digest_it_learnt_from(folder: Path, service: Service) -> None:
    trainer = PPOTrainer(make_config(folder, train={"num_steps": 4}))
    trainer.stop_after_step()
    assert trainer.train().step == 1
    assert ("end", "even") not in service.calls, "it keeps its version until it has ended"
    service.calls.clear()
    PPOTrainer.resume(folder / "run").train()
    assert service.calls[0] == ("register", "even", "0")

    service.version, service.digest = 2, "2" * 64
    with pytest.raises(VersionChanged, match="on_version_change=follow"):
        PPOTrainer.resume(folder / "run", None, ["train.num_steps=5"]).train()
    PPOTrainer.resume(folder / "run", None, ["reward.on_version_change=follow"]).train()
    rows = read_jsonl(folder / "run" / "metrics.jsonl")
    assert [row["reward_version"] for row in rows] == [1, 1, 1, 1, 2]


@pytest.mark.parametrize("selector", ["even@1", "even@stable"])
def test_versions_and_labels_need_no_lease(folder: Path, service: Service, selector: str) -> None:
    PPOTrainer(make_config(folder, reward={"model": selector})).train()
    assert service.calls == [("close",)]


def test_each_of_several_models_has_its_own(folder: Path, service: Service) -> None:
    models = [{"model": "a", "weight": 0.5}, {"model": "b@2"}, {"model": "c", "weight": -1.0}]
    PPOTrainer(make_config(folder, reward={"model": "", "models": models}, train={"num_steps": 1})).train()
    assert [call for call in service.calls if call[0] != "close"] == [
        ("register", "a", ""),
        ("register", "c", ""),
        ("end", "a"),
        ("end", "c"),
    ]
    (row,) = read_jsonl(folder / "run" / "metrics.jsonl")
    assert row["score_mean"] == pytest.approx(0.5 * row["score_mean/a"], abs=1e-6)
    assert len(row["reward_versions"]) == 3
    sample = read_jsonl(folder / "run" / "samples.jsonl")[0]
    assert [(part["model"], part["weight"]) for part in sample["rewards"]] == [("a", 0.5), ("b", 1.0), ("c", -1.0)]


@pytest.mark.parametrize(("judge", "held"), [("judge", ["even", "judge"]), ("judge@2", ["even"]), ("even", ["even"])])
def test_the_second_opinion_is_held_and_given_back_as_the_reward_is(
    folder: Path, service: Service, judge: str, held: list[str]
) -> None:
    evaluation = {"prompts": str(folder / "prompts.jsonl"), "count": 2, "model": judge}
    config = make_config(folder, evaluation=evaluation, train={"num_steps": 1})
    PPOTrainer(config).train()
    assert [call[1] for call in service.calls if call[0] == "register"] == held
    assert [call[1] for call in service.calls if call[0] == "end"] == held


def patient(limit_s: float, stop: Stop | None = None) -> Patience:
    return Patience(
        limit_s,
        away_errors=(ServerUnreachable,),
        report=lambda text: None,
        sleep=lambda seconds: None,
        stop=stop or Stop(),
    )


def test_it_waits_for_a_service_that_is_away(service: Service) -> None:
    service.fails = [ServerUnreachable("down")] * 3
    registration = Registration(service, ["even"], 3600.0, patient(600.0))
    assert registration.begin([None])[0].version == 1
    registration.close()
    assert len(service.calls) == 4
    service.fails = [ServerUnreachable("down")] * 3
    with pytest.raises(RewardServiceAway):
        Registration(service, ["even"], 3600.0, patient(0.0)).begin([None])
    service.fails = [ServerUnreachable("down")] * 3
    with pytest.raises(RunStopped):
        Registration(service, ["even"], 3600.0, patient(600.0, Stop(is_wanted=True))).begin([None])


def test_signs_of_life_go_on_and_a_failed_one_is_told(service: Service) -> None:
    told: list[str] = []
    registration = Registration(service, ["even"], 0.03, patient(0.0), told.append)
    registration.begin([None])
    assert service.renewed.wait(30)
    service.renewed.clear()
    assert service.renewed.wait(30), "after a failure, too"
    registration.close()
    assert any("could not be renewed: for a moment" in text for text in told)


def test_a_sign_of_life_that_the_end_of_the_run_cuts_off_is_no_failure(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    under_way, is_closed = threading.Event(), threading.Event()
    told: list[str] = []
    uncaught: list[threading.ExceptHookArgs] = []

    def renew(model: str) -> Lease:
        under_way.set()
        assert is_closed.wait(30)
        raise CancelledError  # as a client that is closed does

    monkeypatch.setattr(service, "renew_lease", renew)
    monkeypatch.setattr(threading, "excepthook", uncaught.append)
    registration = Registration(service, ["even"], 0.03, patient(0.0), told.append)
    registration.begin([None])
    assert under_way.wait(30)
    registration.close()
    is_closed.set()
    keeper = registration._keeper
    assert keeper is not None
    keeper.join(30)
    assert (uncaught, len(told)) == ([], 1), "of the lease that was given"
