"""RewardClient: scores from the reward service, for programs that wait or hold futures."""

from __future__ import annotations

import queue
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Self, Unpack

from ppo_client.client.catalog import Lease, Model, ModelChange, RunStatus, Trained, Version
from ppo_client.client.core import Core, Delivery
from ppo_client.client.explanation import Explanation
from ppo_client.client.score_call import ScoreOptions, TruncationRule
from ppo_client.client.scores import Content, Scores
from ppo_client.client.settings import ClientSettings, Tls, Tuning, read_settings


class RewardClient:
    """A client of one reward service, which may be several servers.

    Thread-safe. Nothing is opened before the first call, so a client that was only made may be taken through a fork
    (one that was used may not: ForkedAfterUse). Close it, or use it as a context manager.

    ``targets``: ``host:port``, several of them, or ``dns:///name:port`` for all addresses of a name; calls go round
    robin over those that answer. ``run``: the training run's id. ``token``: sent as bearer token. ``tls``: True, a CA
    file's path, or a Tls. What is None comes from RM_TARGET, RM_RUN, RM_TOKEN, and RM_TLS_CA, RM_TLS_CERT and
    RM_TLS_KEY. ``timeout_s``: for a whole call, its retries included. ``tuning``: see ClientSettings. Raises
    InvalidSettings.
    """

    def __init__(
        self,
        targets: str | Sequence[str] | None = None,
        *,
        run: str | None = None,
        token: str | None = None,
        tls: bool | str | Path | Tls | None = None,
        timeout_s: float = 60.0,
        **tuning: Unpack[Tuning],
    ) -> None:
        self._core = Core(read_settings(targets, run=run, token=token, tls=tls, timeout_s=timeout_s, **tuning))

    @property
    def settings(self) -> ClientSettings:
        """As given and found."""
        return self._core.settings

    def score(
        self,
        model: str,
        *,
        prompts: Sequence[Content],
        completions: Sequence[Content],
        **options: Unpack[ScoreOptions],
    ) -> Scores:
        """One score for each completion, in order, all from one version.

        ``model``: ``name@3``, ``name@label`` or ``name``. ``prompts`` and ``completions``: lists of equal length, of
        text (arrays and Series, too), of chat messages, or of the reward model's token ids (rows of arrays and
        tensors, too); an equal prompt travels once. ``options``: see ScoreOptions. Large calls are sent in several
        requests.

        Raises RewardClientError (the tree is in `ppo_client.errors`); ItemsFailed where some completions have no
        score. There is no number in place of a score that could not be had.
        """
        return self._core.wait(self._core.score(model, prompts, completions, options))

    def submit(
        self,
        model: str,
        *,
        prompts: Sequence[Content],
        completions: Sequence[Content],
        **options: Unpack[ScoreOptions],
    ) -> Future[Scores]:
        """Starts `score` and returns at once. What is wrong with the arguments is raised here, the rest by the future.

        ``future.cancel()`` cancels the call on the server, too. At most ``max_in_flight`` requests are on the wire.
        """
        return self._core.submit(self._core.score(model, prompts, completions, options))

    def explain(
        self,
        model: str,
        *,
        prompt: Content = "",
        completion: Content,
        run: str | None = None,
        calibrated: bool = False,
        truncation: TruncationRule | None = None,
    ) -> Explanation:
        """How a version reads one item, token by token, and how its score comes about. Gives the run no lease."""
        return self._core.wait(self._core.explain(model, prompt, completion, run, calibrated, truncation))

    def register_run(
        self,
        model: str,
        *,
        run: str | None = None,
        lease_s: float | None = None,
        expected_digest: str | None = None,
        move: bool = False,
    ) -> Lease:
        """Gives the run a version of ``model`` (a bare name) and a lease on it; a known run gets the one it had.

        ``lease_s``: ends so long after the last sign of life; None: the server's default. ``expected_digest``:
        VersionChanged unless it is this. ``move``: gives up the version that the run had, and asks anew.
        """
        return self._core.wait(self._core.register_run(model, run, lease_s, expected_digest, move))

    def renew_lease(self, model: str, *, run: str | None = None) -> Lease:
        """Says that the run is alive. Scoring with the bare name does so, too."""
        name = self._core.run_id(run)
        return self._core.wait(lambda operations: operations.renew_lease(model, name))

    def end_run(self, model: str = "", *, run: str | None = None) -> None:
        """Ends the run's lease on ``model``; empty: all its leases."""
        name = self._core.run_id(run)
        self._core.wait(lambda operations: operations.end_run(model, name))

    def list_runs(self, model: str = "") -> list[RunStatus]:
        """The runs of a model (empty: of all) that the service knows, last seen first."""
        return self._core.wait(lambda operations: operations.list_runs(model, ""))

    def run_status(self, model: str, *, run: str | None = None) -> RunStatus:
        """What the service knows of one run: its version, how much was scored, mean and spread. Raises RunNotFound."""
        name = self._core.run_id(run)
        return self._core.wait(lambda operations: operations.run_status(model, name))

    def report_outcome(
        self, model: str, metric: str, value: float, *, step: int = 0, num_samples: int = 0, run: str | None = None
    ) -> Trained:
        """Keeps what came of the run: a win rate, a judge's score, any metric of an evaluation.

        `rm-server experiment report` compares the arms of a split by it. The same run, metric and step again replaces
        the value.
        ``step`` 0: of the run as a whole. ``num_samples``: how many judgements ``value`` is the mean of; 0: not known.
        Raises RunNotFound for a run that the service does not know.
        """
        return self._core.wait(self._core.report_outcome(model, metric, value, step, num_samples, run))

    def list_models(self, model: str = "") -> list[Model]:
        """All models, or one, with versions, labels and states."""
        return self._core.wait(lambda operations: operations.list_models(model))

    def get_version(self, selector: str) -> Version:
        """One version, with its evaluations. A bare name is the label ``stable``."""
        return self._core.wait(lambda operations: operations.get_version(selector))

    def watch(self, model: str = "") -> Watch:
        """The present state of the models (empty: all), then every change as it happens; iterate over it."""
        return Watch(self._core, model)

    def close(self) -> None:
        """Cancels what is under way and closes the connections. May be called again."""
        self._core.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"RewardClient({', '.join(self.settings.targets)})"

    def __reduce__(self) -> tuple[object, ...]:
        """A copy in another process is a client with the same settings, token included."""
        return (_from_settings, (type(self), self.settings))


def _from_settings(cls: type[RewardClient], settings: ClientSettings) -> RewardClient:
    client = cls.__new__(cls)
    client._core = Core(settings)
    return client


class Watch(Iterator[ModelChange]):
    """Changes as they come; iterating waits for the next one. Ends with `close`, or raises what ended it."""

    def __init__(self, core: Core, model: str) -> None:
        self._changes: queue.SimpleQueue[Delivery] = queue.SimpleQueue()
        self._work = core.watch(model, self._changes.put)

    def __next__(self) -> ModelChange:
        change = self._changes.get()
        if isinstance(change, ModelChange):
            return change
        self._changes.put(None)  # for whoever asks again
        if change is None:
            raise StopIteration
        raise change

    def close(self) -> None:
        """Ends it; a thread that waits for the next change gets StopIteration."""
        self._work.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
