"""Which precision `auto` means."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rm_server.training.precision import multiplies_bf16, resolve_precision
from rm_server.training.settings import TrainSettings


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"amx_bf16": True, "avx2": True}, True),
        ({"avx512_bf16": True, "amx_bf16": False}, True),
        ({"amx_bf16": False, "avx512_bf16": False, "avx512_f": True}, False),
        ({}, False),
    ],
)
def test_a_cpu_needs_instructions_for_bf16(capabilities: dict[str, Any], expected: bool) -> None:
    assert multiplies_bf16(capabilities) == expected


@pytest.mark.parametrize(("has_it", "expected"), [(True, "bf16"), (False, "fp32")])
def test_auto_goes_by_the_device(monkeypatch: pytest.MonkeyPatch, has_it: bool, expected: str) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": has_it}, raising=False)
    assert resolve_precision(TrainSettings("base", precision="auto", device="cpu")) == expected
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: not has_it)
    assert resolve_precision(TrainSettings("base", precision="auto")) != expected
    assert resolve_precision(TrainSettings("base", precision="auto", device="cpu")) == expected


def test_an_old_torch_that_cannot_say_means_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert resolve_precision(TrainSettings("base", precision="auto", device="cpu")) == "fp32"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_is_said_is_done(precision: Any) -> None:
    assert resolve_precision(TrainSettings("base", precision=precision)) == precision
