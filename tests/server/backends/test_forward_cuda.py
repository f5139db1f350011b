"""Packed forwards on a GPU, as far as they go without one: tensors of the device, which have no data.

What mixes devices fails here, and what waits for the device, for it asks for a number that nobody has.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel

from rm_server.backends.checkpoint import load_model, read_config
from rm_server.backends.items import Batch, EncodedItem
from rm_server.backends.torch import attention_cuda
from rm_server.backends.torch.attention_cuda import kernels
from rm_server.backends.torch.forward import PackedForward

GPU = torch.device("cuda:0")
# As a server computes (`backend.check_settings`); without a driver, only the last one says that it can.
WITHOUT_CUDNN = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
PROMPT = list(range(5, 45))

pytestmark = pytest.mark.skipif(torch.version.cuda is None, reason="this torch knows no GPU")


def change(root: torch.nn.Module, to: Callable[[torch.Tensor], torch.Tensor], *, buffers: bool = True) -> None:
    """As `Module.to`, which does not take tensors without data."""
    for module in root.modules():
        for name, parameter in module.named_parameters(recurse=False):
            module.register_parameter(name, torch.nn.Parameter(to(parameter.data), requires_grad=False))
        for name, buffer in module.named_buffers(recurse=False) if buffers else ():
            module.register_buffer(name, to(buffer), persistent=False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["one kernel", "item by item"])
@pytest.mark.parametrize(
    "family", ["gpt2", "llama", "qwen3", "mistral", "gemma3", "phi3_longrope", "deepseek_v3", "bert", "modernbert"]
)
def test_nothing_is_on_another_device_and_nothing_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, dtype: torch.dtype
) -> None:
    kernel = dict(kernels())["torch's varlen_attn"]
    monkeypatch.setattr(attention_cuda, "kernel_for", lambda *form: kernel)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    folder = tiny_models.make_checkpoint(tmp_path, family)
    model = load_model(folder, read_config(folder))
    items = [np.array(ids, np.int32) for ids in ([*PROMPT, 50], [*PROMPT, 51, 52], [9, 8, 7], [*PROMPT, 60])]
    batch = Batch.of([EncodedItem(ids=ids, num_tokens=len(ids)) for ids in items])
    mode = FakeTensorMode()
    change(model, mode.from_tensor)
    with mode, sdpa_kernel(WITHOUT_CUDNN), torch.inference_mode():
        change(model, lambda tensor: tensor.to(GPU))
        forward = PackedForward(model, GPU)
        change(forward.backbone, lambda tensor: tensor.to(dtype), buffers=False)
        logits = forward.forward(batch)
    assert (logits.device, logits.shape, logits.dtype) == (GPU, (4, 1), torch.float32)
    assert forward.last is not None
    assert bool(forward.last.layout.shared) == (family not in ("bert", "modernbert", "gemma3", "mistral"))
    assert forward.last.num_calls == model.config.num_hidden_layers
    assert ("spans" in forward.last.memo) == (dtype == torch.bfloat16 and family != "deepseek_v3")
