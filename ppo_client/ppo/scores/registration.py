"""A run's leases: the versions that the service keeps for it while it lives, by the bare names of the models that it
learns from and is judged by.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from ppo_client.client.errors import RewardClientError
from ppo_client.client.errors import VersionChanged as VersionChangedAtService
from ppo_client.ppo.errors import VersionChanged
from ppo_client.ppo.scores.waiting import Patience

if TYPE_CHECKING:
    from ppo_client.client.catalog import Lease

_SIGNS_OF_LIFE_PER_LEASE = 3


class Registrar(Protocol):
    """What RewardClient offers to a run; the run's id is the client's."""

    def register_run(
        self, model: str, *, lease_s: float | None = None, expected_digest: str | None = None
    ) -> Lease: ...

    def renew_lease(self, model: str) -> Lease: ...

    def end_run(self, model: str = "") -> None: ...


@dataclass(slots=True)
class Registration:
    """Of the main process: one lease for each of `models`, kept until `end`, or left to expire by `close`."""

    registrar: Registrar
    models: Sequence[str]
    """Bare names"""
    lease_s: float
    patience: Patience
    report: Callable[[str], None] = print
    _over: threading.Event = field(default_factory=threading.Event)
    _keeper: threading.Thread | None = None

    def begin(self, expected_digests: Sequence[str | None]) -> list[Lease]:
        """Asks for the leases, with the digest that each must have, if any.

        A run that the service knows gets the versions it had. Raises VersionChanged, RewardServiceAway, RunStopped, or
        what the client raised.
        """
        leases = []
        for model, digest in zip(self.models, expected_digests, strict=True):
            lease = self._register(model, digest)
            had = "again " if lease.is_resumed else ""
            arm = f", arm {lease.arm}" if lease.arm else ""
            self.report(f"{lease.run} holds {had}{lease.model}@{lease.version} (digest {lease.digest:.12}{arm})")
            leases.append(lease)
        if leases:
            self._keeper = threading.Thread(target=self._keep, name="leases", daemon=True)
            self._keeper.start()
        return leases

    def end(self) -> None:
        """The run is done: gives the versions back."""
        self.close()
        for model in self.models:
            try:
                self.registrar.end_run(model)
            except RewardClientError as error:
                self.report(f"the lease on {model} was not given back, and will expire: {error}")

    def close(self) -> None:
        """No more signs of life. The run may be resumed, so it keeps its versions until the leases expire."""
        self._over.set()
        if self._keeper is not None:
            self._keeper.join(timeout=1.0)

    def _register(self, model: str, digest: str | None) -> Lease:
        # One thread for each attempt: the client waits, and a signal must not have to.
        def attempt() -> Future[Lease]:
            pool = ThreadPoolExecutor(max_workers=1)
            future = pool.submit(self.registrar.register_run, model, lease_s=self.lease_s, expected_digest=digest)
            pool.shutdown(wait=False)
            return future

        try:
            return self.patience.result(attempt(), attempt, f"version of {model!r}")
        except VersionChangedAtService as error:
            raise VersionChanged(
                f"the service no longer has for this run the version it learnt from: {error}. To go on with another "
                "one, resume with --set reward.on_version_change=follow"
            ) from error

    def _keep(self) -> None:
        while not self._over.wait(self.lease_s / _SIGNS_OF_LIFE_PER_LEASE):
            for model in self.models:
                try:
                    self.registrar.renew_lease(model)
                except (RewardClientError, CancelledError) as error:
                    if self._over.is_set():
                        return  # the run has left meanwhile, and closed the client
                    self.report(f"the lease on {model} could not be renewed: {error}")
