"""What both clients stand on: settings, and the loop and connections that come to life with the first call."""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar, cast

from rm_api.v1 import experiments_pb2, scoring_pb2

from ppo_client.client.catalog import Lease, ModelChange, Trained
from ppo_client.client.content import to_items
from ppo_client.client.errors import ClientClosed, InvalidRequest
from ppo_client.client.explanation import Explanation
from ppo_client.client.loop_thread import LoopThread, check_not_forked
from ppo_client.client.operations import Operations
from ppo_client.client.score_call import ScoreCall, ScoreOptions, TruncationRule, check_options
from ppo_client.client.scores import Content, Scores
from ppo_client.client.settings import ClientSettings

T = TypeVar("T")

Work = Callable[[Operations], Coroutine[Any, Any, T]]
"""One operation, to be started on the loop."""

Delivery = ModelChange | BaseException | None
"""What a watch hands on: a change, the error that ended it, or None at its end."""


class Core:
    """Thread-safe. Threads, loop and channels are made at the first call, so an unused client survives a fork."""

    def __init__(self, settings: ClientSettings) -> None:
        self.settings = settings
        self._lock = threading.Lock()
        self._running: tuple[LoopThread, Operations] | None = None
        self._is_closed = False

    def submit(self, work: Work[T], *, will_wait: bool = False) -> Future[T]:
        """Starts the operation and returns at once. ``will_wait``: this thread does nothing else until it is done."""
        check_not_forked()
        with self._lock:  # held so that nothing is started on a loop that `close` is ending
            loop, operations = self._start()
            if will_wait:
                loop.check_is_other()
            future = loop.submit(work(operations))
        # Whoever keeps only the future keeps the client alive with it.
        future.add_done_callback(lambda _, core=self: None)  # type: ignore[misc]
        return future

    def wait(self, work: Work[T]) -> T:
        """The operation's result. Interrupting the wait (Ctrl-C) cancels the operation."""
        future = self.submit(work, will_wait=True)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def close(self) -> None:
        """Cancels what is under way, closes connections, ends the thread. May be called again."""
        with self._lock:
            self._is_closed = True
            running, self._running = self._running, None
        if running is not None:
            _shut_down(*running)

    def _start(self) -> tuple[LoopThread, Operations]:
        if self._is_closed:
            raise ClientClosed("this client was closed; make a new one")
        if self._running is None:
            self._running = LoopThread(), Operations(self.settings)
            # For clients that are dropped, and at the interpreter's exit.
            weakref.finalize(self, _shut_down, *self._running)
        return self._running

    # What a call asks for. Whatever is wrong with it is raised here, in the caller's thread, before anything is sent.

    def score(
        self, model: str, prompts: Sequence[Content], completions: Sequence[Content], options: ScoreOptions
    ) -> Work[Scores]:
        check_options(options)
        given = dict(options)
        timeout_s = cast("float | None", given.pop("timeout_s", None))
        if timeout_s is None:
            timeout_s = self.settings.timeout_s
        if not 0 < timeout_s < math.inf:
            raise InvalidRequest(f"timeout_s must be a number of seconds above 0, got {timeout_s}")
        run = cast("str | None", given.pop("run", None))
        call = ScoreCall(model=model, run=self.settings.run if run is None else run, **cast("dict[str, Any]", given))
        items = to_items(prompts, completions, are_rendered=call.rendered)
        return lambda operations: operations.score(items, call, timeout_s)

    def explain(
        self,
        model: str,
        prompt: Content,
        completion: Content,
        run: str | None,
        calibrated: bool,
        truncation: TruncationRule | None,
    ) -> Work[Explanation]:
        (item,) = to_items([prompt], [completion])
        call = ScoreCall(model, self.settings.run if run is None else run, calibrated, truncation)
        request = scoring_pb2.ExplainRequest(
            model=model,
            prompt=item.prompt,
            completion=item.completion,
            run=call.run,
            options=call.options(),
        )
        return lambda operations: operations.explain(request)

    def register_run(
        self, model: str, run: str | None, lease_s: float | None, expected_digest: str | None, move: bool
    ) -> Work[Lease]:
        request = experiments_pb2.RegisterRunRequest(
            run=self.run_id(run),
            model=model,
            lease_seconds=lease_s or 0.0,
            expected_digest=expected_digest or "",
            move=move,
        )
        return lambda operations: operations.register_run(request)

    def report_outcome(
        self, model: str, metric: str, value: float, step: int, num_samples: int, run: str | None
    ) -> Work[Trained]:
        for name, number in (("step", step), ("num_samples", num_samples)):
            if number < 0:
                raise InvalidRequest(f"{name} is {number}; 0 or more is expected")
        request = experiments_pb2.ReportOutcomeRequest(
            run=self.run_id(run), model=model, metric=metric, value=value, step=step, num_samples=num_samples
        )
        return lambda operations: operations.report_outcome(request)

    def run_id(self, run: str | None) -> str:
        """The run of a call that needs one."""
        name = run or self.settings.run
        if not name:
            raise InvalidRequest("which run? Give the client its run=, or set RM_RUN, or pass run= to this call")
        if not isinstance(name, str):
            raise InvalidRequest(f"run must be text, got {name!r}")
        return name

    def watch(self, model: str, deliver: Callable[[Delivery], None]) -> Future[None]:
        """Hands every change to ``deliver``, on the loop's thread, until it is cancelled or an error ends it."""

        async def work(operations: Operations) -> None:
            try:
                await operations.watch(model, deliver)
            except Exception as error:
                deliver(error)
            finally:
                deliver(None)

        return self.submit(work)


def _shut_down(loop: LoopThread, operations: Operations) -> None:
    if loop.close():
        operations.close()
