"""Two servers on a real PostgreSQL behind a real nginx: what dies and comes back is not seen by who scores."""

from __future__ import annotations

import signal
from contextlib import ExitStack

import pytest

from bench.storms.postgresql import NotInstalled
from bench.storms.replicas import Replicas, is_reachable, set_label, set_split
from bench.storms.scoring import Scoring
from bench.storms.server_process import seconds_until

CONVERGE_S = 2.0


def test_what_dies_and_comes_back_is_not_seen_by_who_scores() -> None:
    with ExitStack() as stack:
        try:
            replicas = Replicas(stack)
        except NotInstalled as error:
            pytest.skip(str(error))
        one, two = replicas.servers
        with Scoring(replicas.target) as scoring:
            scoring.wait_for_more()
            one.kill(signal.SIGKILL)
            scoring.wait_for_more()
            one.start()
            scoring.wait_for_more()

            replicas.database.stop("immediate")
            scoring.wait_for_more(("m", "m@stable", "m@1"))
            known_before = scoring.num_answers["new runs"]
            replicas.database.start()
            seconds_until(lambda: scoring.num_answers["new runs"] >= known_before + 20, 60.0)

            # Both follow what is changed through one of them, after all that.
            seconds_until(lambda: is_reachable(two), 30.0)
            set_label(two, 2)
            assert replicas.seconds_to_label(2) <= CONVERGE_S
            arms = {"a": 1, "b": 2}
            set_split(two, arms)
            assert replicas.seconds_to_split(arms) <= CONVERGE_S
            scoring.wait_for_more()
            two.kill(signal.SIGTERM)
            scoring.wait_for_more()

        assert scoring.failures == []
        # The run keeps its version, whoever answers; who follows the label follows it.
        assert scoring.versions["m"] == scoring.versions["m@1"] == {1}
        assert scoring.versions["m@stable"] == scoring.versions["new runs"] == {1, 2}
