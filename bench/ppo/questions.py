"""What is asked about the trainers: time and learning, memory, and waiting for rewards."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

from bench.measurement import Bench
from bench.peers.environments import SIDE, python_with
from bench.ppo import toy
from bench.ppo.arm import Arm
from bench.ppo.toy import Job
from bench.statistics import median, median_ratio

TRL = "trl==1.12.0"
WARM_UP_STEPS = 2
"""That do not count: caches and allocators settle"""
LAST_STEPS = 5
"""Over which a final reward is the mean"""
CRITICS = ("shared", "separate")
LARGE_VOCABULARY = 8192


def compare(bench: Bench) -> None:
    """The toy task, step after step in turns: what slows one arm slows the others, too."""
    num_steps, seeds = (4, (1,)) if bench.quick else (40, (1, 2, 3))
    ratios: dict[str, tuple[list[float], list[float]]] = {critic: ([], []) for critic in CRITICS}
    finals: dict[str, list[float]] = {}
    for seed in seeds:
        taken = _in_turns(Job("", seed, num_steps))
        for name, steps in taken.items():
            settled = steps[WARM_UP_STEPS:]
            finals.setdefault(name, []).append(mean(step["score"] for step in steps[-LAST_STEPS:]))
            bench.row(
                trainer=name,
                seed=seed,
                cpu_s_per_step=median(step["cpu_s"] for step in settled),
                wall_s_per_step=median(step["wall_s"] for step in settled),
                first_reward=steps[0]["score"],
                steps_to_0_9=next((at for at, step in enumerate(steps, 1) if step["score"] >= 0.9), None),
                final_reward=finals[name][-1],
            )
        for critic, (ours, theirs) in ratios.items():
            ours += [step["cpu_s"] for step in taken[critic][WARM_UP_STEPS:]]
            theirs += [step["cpu_s"] for step in taken["trl"][WARM_UP_STEPS:]]
    for critic, (ours, theirs) in ratios.items():
        bench.figure(f"cpu_over_trl_{critic}", median_ratio(ours, theirs))
    # trl has no shared critic: each of ours against its one, and the lower counts.
    bench.figure("final_reward_minus_trl", min(mean(finals[critic]) for critic in CRITICS) - mean(finals["trl"]))


def memory(bench: Bench) -> None:
    """The same task with a larger vocabulary: the peak of resident memory above what it was before."""
    taken = _in_turns(Job("", 1, 2 if bench.quick else 6, vocab_size=LARGE_VOCABULARY))
    peaks = {name: max(step["peak_bytes"] for step in steps) for name, steps in taken.items()}
    for name, peak in peaks.items():
        bench.row(trainer=name, peak_mib=round(peak / 2**20, 1))
    # With a critic of its own, as trl has it; a shared one needs less.
    bench.figure("peak_memory_over_trl", peaks["separate"] / peaks["trl"])


def waiting(bench: Bench) -> None:
    """A service of 20 ms a call and 10 ms a text, 64 texts, a policy that writes for more than a second."""
    long = Job("", 1, 2 if bench.quick else 5, "shared", response_tokens=128, num_positions=256)
    jobs = {name: replace(long, rewards=name) for name in ("overlapped", "blocking")}
    with ExitStack() as stack:
        arms = [stack.enter_context(_ours(name, job)) for name, job in jobs.items()]
        taken = {arm.name: [] for arm in arms}
        for _ in range(long.num_steps):
            for arm in arms:
                taken[arm.name].append(arm.step())
    waits: dict[str, float] = {}
    for name, steps in taken.items():
        settled = steps[1:]
        waits[name] = median(step["blocked_s"] + step["reward_wait_s"] for step in settled)
        parts = ("generate_s", "evaluate_s", "update_s", "step_s")
        bench.row(rewards=name, wait_s=waits[name], **{part: median(step[part] for step in settled) for part in parts})
    bench.figure("reward_wait_share", waits["overlapped"] / waits["blocking"])
    bench.figure(
        "step_over_generation_and_update",
        median(step["step_s"] / (step["generate_s"] + step["update_s"]) for step in taken["overlapped"][1:]),
    )


def _in_turns(job: Job) -> dict[str, list[dict[str, Any]]]:
    """What each step took, by trainer."""
    with ExitStack() as stack:
        python = python_with("trl-1.12", [TRL])
        arms = [stack.enter_context(_arm("trl", python, "bench.ppo.trl_ppo", job))]
        arms += [stack.enter_context(_ours(critic, replace(job, critic=critic))) for critic in CRITICS]
        taken: dict[str, list[dict[str, Any]]] = {arm.name: [] for arm in arms}
        for number in range(job.num_steps):
            for arm in _rotated(arms, number):
                taken[arm.name].append(arm.step())
    return taken


def _rotated(arms: Sequence[Arm], number: int) -> list[Arm]:
    """So that none always comes after the same."""
    first = number % len(arms)
    return [*arms[first:], *arms[:first]]


def _ours(name: str, job: Job) -> Arm:
    return _arm(name, Path(sys.executable), "bench.ppo.ours", job)


def _arm(name: str, python: Path, module: str, job: Job) -> Arm:
    folder = SIDE / "ppo" / name
    shutil.rmtree(folder, ignore_errors=True)
    warm_up = Job(str(folder / "warm_up"), job.seed, 1, job.critic, vocab_size=64)
    job = replace(job, folder=str(folder))
    return Arm(name, python, module, toy.prepare(warm_up), toy.prepare(job))
