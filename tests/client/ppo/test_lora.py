"""Adapters go where they are meant to, and what cannot be one is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny_policies import make_language_model, save_policy

from ppo_client.ppo.config import LoRAConfig
from ppo_client.ppo.errors import ConfigError
from ppo_client.ppo.models.build import load_language_model
from ppo_client.ppo.models.lora import adapter_base, add_adapter


def adapted_layers(family: str, *targets: str) -> set[str]:
    model = make_language_model(family)
    add_adapter(model, LoRAConfig(rank=2, target_modules=targets), seed=0)
    return {name.split(".lora_A")[0].rsplit(".", 1)[-1] for name, _ in model.named_parameters() if "lora_A" in name}


@pytest.mark.parametrize(
    ("family", "targets", "layers"),
    [
        ("llama", (), {"q_proj", "v_proj"}),
        ("gpt2", (), {"c_attn"}),
        ("t5", (), {"q", "v"}),
        ("bart", (), {"q_proj", "v_proj"}),
        ("llama", ("o_proj",), {"o_proj"}),
        (
            "llama",
            ("all-linear",),
            {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"},
        ),
    ],
)
def test_layers(family: str, targets: tuple[str, ...], layers: set[str]) -> None:
    assert adapted_layers(family, *targets) == layers


def test_layers_that_are_not_there_and_families_that_are_not_known() -> None:
    with pytest.raises(ConfigError, match=r"lora\.target_modules: .*nothing"):
        adapted_layers("llama", "nothing")
    model = make_language_model("llama")
    model.config.model_type = "unheard_of"
    with pytest.raises(ConfigError, match="no layers to adapt are known for unheard_of"):
        add_adapter(model, LoRAConfig(rank=2), seed=0)


def test_an_adapter_leaves_the_stream_of_random_numbers_alone() -> None:
    model = make_language_model("llama")
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    add_adapter(model, LoRAConfig(rank=2), seed=0)
    assert torch.equal(torch.rand(2), expected)


def test_directories_that_are_no_whole_adapters(tmp_path: Path) -> None:
    assert adapter_base(str(tmp_path)) is None
    config = tmp_path / "adapter_config.json"
    config.write_text("{}")
    with pytest.raises(ConfigError, match="does not name the adapter's base model"):
        adapter_base(str(tmp_path))
    base = save_policy(tmp_path / "base", "llama")
    config.write_text(json.dumps({"base_model_name_or_path": str(base), "peft_type": "LORA"}))
    with pytest.raises(ConfigError, match="no adapter_model"):
        load_language_model(str(tmp_path), "float32")
    config.write_text(json.dumps({"base_model_name_or_path": str(tmp_path / "gone"), "peft_type": "LORA"}))
    with pytest.raises(ConfigError, match="there is no directory"):
        load_language_model(str(tmp_path), "float32")
