"""Which arm of a split a run belongs to: a pure decision, sticky by run, that moves no more runs than it must.

Weighted rendezvous hashing: every (run, arm) has its own draw u, uniform in (0, 1) and for ever the same; the run goes
to the arm with the least -ln(u) / weight, an exponential waiting time of that rate, so that an arm wins with its share
of the weights. As no arm's draw depends on the others, a new arm takes runs only for itself, and a weight that grows or
shrinks moves runs only to or from its arm. (Thaler and Ravishankar, "Using name-based mappings to increase hit rates",
IEEE/ACM Transactions on Networking 6(1), 1998; the weighted form: Schindelhauer and Schomaker, SPAA 2005.)
"""

from __future__ import annotations

import hashlib
import math

from rm_server.registry.records import Arm, Split


def weight_at(arm: Arm, now_s: float) -> float:
    """The arm's weight at a moment (since the epoch): along its ramp in straight lines, after the last point flat."""
    before_s, weight = None, arm.weight
    for point in arm.ramp:
        if now_s < point.time_s:
            if before_s is None:
                return arm.weight
            return weight + (point.weight - weight) * (now_s - before_s) / (point.time_s - before_s)
        before_s, weight = point.time_s, point.weight
    return weight


def shares(split: Split, now_s: float) -> dict[str, float]:
    """By arm, its share of the new runs; they add up to 1, or are all 0 when no arm takes runs at that moment."""
    weights = {arm.name: weight_at(arm, now_s) for arm in split.arms}
    largest = max(weights.values())
    if largest <= 0:
        return weights
    scaled = {name: weight / largest for name, weight in weights.items()}  # no sum overflows
    total = math.fsum(scaled.values())
    return {name: weight / total for name, weight in scaled.items()}


def choose_arm(split: Split, run: str, now_s: float, *, had: str = "") -> Arm | None:
    """The arm of a run; None: no arm takes runs at that moment.

    ``had``: the arm that the run was given before; it stays there as long as that arm is in the split and takes runs.
    """
    share = shares(split, now_s)
    open_arms = [arm for arm in split.arms if share[arm.name] > 0]
    for arm in open_arms:
        if arm.name == had:
            return arm
    return min(
        open_arms,
        key=lambda arm: (-math.log(_draw(split.salt, arm.name, run)) / share[arm.name], arm.name),
        default=None,
    )


def _draw(salt: str, arm: str, run: str) -> float:
    """In (0, 1): 52 bits of a hash and a half, which a float holds exactly, so that it is never 0 or 1."""
    digest = hashlib.sha256("\0".join((salt, arm, run)).encode()).digest()
    return ((int.from_bytes(digest[:8], "big") >> 12) + 0.5) / 2.0**52
