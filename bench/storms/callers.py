"""Training jobs in a storm: threads that score through RewardClient in their own way and note each answer."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from bench.storms.meaning import Meaning
from ppo_client import RewardClient
from ppo_client.client.scores import Scores

RUN_CALLS = 48
"""So many calls by a run; then it ends and another one begins."""

PROMPT = "Hi"
TEXTS = tuple(f"text number {number}, and {'so on ' * (number % 5)}" for number in range(16))
_TOLERANCE = 1e-5


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer, in seconds on one clock. ``held``: the version that the run's lease is on; None: it has none yet."""

    selector: str
    run: str
    sent: float
    received: float
    version: int
    held: int | None = None
    had_arm: str = ""

    def is_allowed(self, meaning: Meaning) -> bool:
        """Whether the selector could have meant this version at some moment between its send and its reply."""
        if self.held is not None:
            return self.version == self.held
        possible = meaning.possible(self.selector, self.run, self.sent, self.received, had_arm=self.had_arm)
        return self.version in possible


@dataclass
class Caller:
    """A thread that asks ``num_calls`` times. ``expected``: by selector with number, the score of each text."""

    client: RewardClient
    number: int
    model: str
    composite: str
    num_calls: int
    expected: Mapping[str, Mapping[str, float]]
    replies: list[Reply] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    lease_failures: list[str] = field(default_factory=list)
    wrong_scores: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    _run: int = 0

    def start(self) -> threading.Thread:
        """Begins, on a thread of its own."""
        ways = (self._by_label, self._registered, self._by_number, self._unregistered)
        thread = threading.Thread(
            target=self._call, args=(ways[self.number % len(ways)],), name=f"caller {self.number}"
        )
        thread.start()
        return thread

    @property
    def next_run(self) -> str:
        """The run that asks after the present one."""
        return self._name(self._run + 1)

    def _call(self, way: object) -> None:
        try:
            way()  # type: ignore[operator]
        except Exception as error:  # what breaks the way itself, a registration for one
            self.failures.append(f"{self.number}: {type(error).__name__}: {error}")

    def _by_label(self) -> None:
        selectors = (f"{self.model}@stable", f"{self.model}@canary", f"{self.composite}@stable")
        for selector in itertools.islice(itertools.cycle(selectors), self.num_calls):
            self._score(selector, f"by-label-{self.number}")

    def _registered(self) -> None:
        """Runs that register, hold a version, move to another one half way, and end."""
        for run, num_calls in self._runs():
            lease, reply = None, None
            for number in range(num_calls):
                if number in (0, RUN_CALLS // 2):
                    sent = time.monotonic()
                    had_arm = lease.arm if lease is not None else ""
                    lease = self.client.register_run(self.model, run=run, move=lease is not None)
                    reply = Reply(self.model, run, sent, time.monotonic(), lease.version, had_arm=had_arm)
                    self.replies.append(reply)
                assert lease is not None
                self._score(self.model, run, held=lease.version)
            self.client.end_run(self.model, run=run)

    def _by_number(self) -> None:
        """Runs that register and ask by the number: their lease keeps it loaded."""
        for run, num_calls in self._runs():
            lease = self.client.register_run(self.model, run=run)
            for number in range(num_calls):
                if number % 16 == 15:
                    self.client.renew_lease(self.model, run=run)
                self._score(f"{self.model}@{lease.version}", run, held=lease.version)
            self.client.end_run(self.model, run=run)

    def _unregistered(self) -> None:
        """Runs that just score by the bare name: the first answer is their version."""
        for run, num_calls in self._runs():
            held = None
            for _ in range(num_calls):
                scores = self._score(self.model, run, held=held)
                held = scores.version if held is None and scores is not None else held
            self.client.end_run(self.model, run=run)

    def _runs(self) -> Iterator[tuple[str, int]]:
        for left in range(self.num_calls, 0, -RUN_CALLS):
            self._run += 1
            yield self._name(self._run), min(RUN_CALLS, left)

    def _name(self, run: int) -> str:
        return f"run-{self.number}-{run}"

    def _score(self, selector: str, run: str, held: int | None = None) -> Scores | None:
        turn = len(self.seconds)
        texts = (TEXTS[turn % len(TEXTS)], TEXTS[(turn + 5) % len(TEXTS)])
        sent = time.monotonic()
        try:
            scores = self.client.score(
                selector, prompts=[PROMPT] * 2, completions=texts, run=run, bypass_cache=turn % 2 == 0, timeout_s=300.0
            )
        except Exception as error:
            message = f"{selector} of {run}: {type(error).__name__}: {error}"
            self.failures.append(message)
            if held is not None:
                self.lease_failures.append(message)
            self.seconds.append(time.monotonic() - sent)
            return None
        received = time.monotonic()
        self.seconds.append(received - sent)
        self.replies.append(Reply(selector, run, sent, received, scores.version, held))
        self._check(scores, texts)
        return scores

    def _check(self, scores: Scores, texts: Sequence[str]) -> None:
        expected = self.expected[f"{scores.model}@{scores.version}"]
        for text, value in zip(texts, scores.values, strict=True):
            if abs(value - expected[text]) > _TOLERANCE:
                self.wrong_scores.append(f"{scores.model}@{scores.version}: {value}, expected {expected[text]}")
