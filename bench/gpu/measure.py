"""The questions to a device: what share of its matrix products is served, and how that compares with transformers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from bench.gpu.arithmetic import forward_flops, shape_of
from bench.gpu.arms import PADDED_ITEMS, Packed, Transformers, matmul_flops_per_s
from bench.load import Call, closed
from bench.measurement import Bench, make_calls, speed
from bench.models import Model
from bench.service import Service
from bench.statistics import median, median_ratio, percentile
from bench.workload import GROUP_SIZE, Item, as_strangers, equal_items, groups, in_calls, items, token_ratio


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is asked. ``matmul``: rows and columns of the square product.

    ``batch_tokens``: of a batch; the backend cuts it into forwards of at most `MAX_FORWARD_TOKENS`.
    """

    matmul: int = 8192
    item_tokens: int = 512
    num_items: int = 512
    callers: int = 16
    items_per_call: int = 8
    batch_tokens: int = 16_384
    single_calls: int = 50


def run(bench: Bench, model: Model, device: str, sizes: Sizes) -> None:
    """Products, backend, service and transformers take turns on one device; figures are medians of rounds' ratios."""
    by_hand = Transformers(model.folder, device)
    shape = shape_of(by_hand.model.config)
    equal = equal_items(model.vocabulary, sizes.num_items, sizes.item_tokens, seed=16)
    mixed = items(model.vocabulary, sizes.num_items, seed=17)
    grouped = groups(model.vocabulary, sizes.num_items // GROUP_SIZE, seed=18)
    flops_per_token = forward_flops(shape, [sizes.item_tokens]) / sizes.item_tokens
    settings = {"engine.device": device, "engine.max_batch_tokens": sizes.batch_tokens}
    rates: dict[str, list[float]] = {}
    waits: dict[str, list[float]] = {}
    with Service(workers=1, threads=bench.cores, **settings) as service:
        selector = service.deploy(model.name, model.folder, "bf16")
        packed = Packed(model.folder, device, equal, sizes.batch_tokens)
        torch.backends.cuda.enable_cudnn_sdp(True)  # which our backend turned off: transformers have it by themselves
        calls = {
            lengths: _dealt(make_calls(selector, call_items), sizes)
            for lengths, call_items in (
                ("equal", in_calls(equal, sizes.items_per_call)),
                ("mixed", in_calls(mixed, sizes.items_per_call)),
                ("groups", grouped),
                ("strangers", as_strangers(grouped)),
            )
        }
        single = make_calls(selector, in_calls(equal[: sizes.single_calls], 1))
        _warm_up(service, by_hand, packed, calls["equal"], equal)

        def note(number: int, what: str, lengths: str, tokens_per_s: float) -> None:
            rates.setdefault(f"{what}, {lengths}", []).append(tokens_per_s)
            bench.row(round=number, what=what, lengths=lengths, tokens_per_s=round(tokens_per_s, 1))

        for number in range(bench.rounds):
            products = matmul_flops_per_s(device, sizes.matmul, bench.seconds(3))
            rates.setdefault("products", []).append(products)
            bench.row(round=number, what="matrix products", tflops_per_s=round(products / 1e12, 3))
            note(number, "our backend", "equal", packed.tokens_per_s())
            for lengths, pool in (("equal", equal), ("mixed", mixed)):
                note(number, "transformers, padded", lengths, by_hand.tokens_per_s(pool))
            for lengths in calls:
                answers = closed(service.address, calls[lengths], warm_up_s=bench.warm_up_s, seconds=bench.seconds(8))
                note(number, "service", lengths, speed(answers)["tokens_per_s"])
            bare = by_hand.forward_seconds(equal[0], sizes.single_calls)
            answers = closed(service.address, [single], warm_up_s=0, seconds=60, repeat=False)
            for what, seconds in (("bare forward", bare), ("service", [answer.seconds for answer in answers])):
                waits.setdefault(what, []).append(median(seconds))
                cells = {f"p{share}_ms": round(1000 * percentile(seconds, share / 100), 3) for share in (50, 99)}
                bench.row(round=number, what=f"one item: {what}", calls=len(seconds), **cells)
    if device.startswith("cuda"):
        bench.row(what="memory in this process", peak_mib=round(torch.cuda.max_memory_allocated(device) / 2**20))
    for what in ("service", "our backend"):
        used = [rate * flops_per_token for rate in rates[f"{what}, equal"]]
        bench.figure(f"gpu_{what.split()[-1]}_over_matmul", median_ratio(used, rates["products"]))
    for lengths, ending in (("mixed", ""), ("equal", "_equal_lengths")):
        ratio = median_ratio(rates[f"service, {lengths}"], rates[f"transformers, padded, {lengths}"])
        bench.figure(f"gpu_service_over_transformers_padded{ending}", ratio)
    speed_up = median_ratio(rates["service, groups"], rates["service, strangers"])
    bench.figure("gpu_shared_prompt_speedup_over_token_ratio", speed_up / token_ratio(grouped))
    bench.figure("gpu_single_item_p50_over_bare_forward", median_ratio(waits["service"], waits["bare forward"]))


def _dealt(calls: Sequence[Call], sizes: Sizes) -> list[list[Call]]:
    return [list(calls[number :: sizes.callers]) for number in range(sizes.callers)]


def _warm_up(
    service: Service, by_hand: Transformers, packed: Packed, calls: list[list[Call]], equal: Sequence[Item]
) -> None:
    """Kernels are chosen and loaded at first use, for shapes as they will come."""
    by_hand.score(equal[:PADDED_ITEMS])
    packed.tokens_per_s()
    closed(service.address, [part[:2] for part in calls], warm_up_s=0, seconds=60, repeat=False)
