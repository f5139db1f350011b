"""Which precision training computes in where the settings leave it open."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from rm_server.training.settings import TrainingPrecision, TrainSettings

# The instructions that multiply bf16 on x86; without them it is emulated, and slower than fp32.
_BF16_INSTRUCTIONS = ("amx_bf16", "avx512_bf16")


def resolve_precision(settings: TrainSettings) -> TrainingPrecision:
    """``auto`` becomes bf16 where the device multiplies bf16 itself, fp32 elsewhere."""
    if settings.precision != "auto":
        return settings.precision
    if settings.device == "auto" and torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if multiplies_bf16(_cpu_capabilities()) else "fp32"


def multiplies_bf16(capabilities: Mapping[str, object]) -> bool:
    """Whether a CPU with these capabilities, as `torch.cpu.get_capabilities` names them, has instructions for it."""
    return any(bool(capabilities.get(name)) for name in _BF16_INSTRUCTIONS)


def _cpu_capabilities() -> Mapping[str, object]:
    get = getattr(torch.cpu, "get_capabilities", None)  # not in every torch that we support
    return get() if get else {}
