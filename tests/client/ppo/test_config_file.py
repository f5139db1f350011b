"""Files and overrides are read key by key: unknown names and wrong types do not pass."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_policies import make_config

from ppo_client.ppo.config import PPOConfig, UpdateConfig
from ppo_client.ppo.config_file import changed_keys, from_mapping, load_config, to_toml
from ppo_client.ppo.errors import ConfigError

REQUIRED = ("policy.model=p", "data.prompts=d", "reward.model=m@stable", "train.output=o")


def test_defaults_then_file_then_command_line(tmp_path: Path) -> None:
    path = tmp_path / "ppo.toml"
    path.write_text('[ppo]\nbatch_size = 32\nlearning_rate = 1\n[reward]\ntargets = ["a:1"]\n', encoding="utf-8")
    config = load_config(PPOConfig, path, [*REQUIRED, "ppo.batch_size=16", 'reward.targets=["b:2", "c:3"]'])
    assert (config.ppo.batch_size, config.ppo.learning_rate, config.ppo.gamma) == (16, 1.0, 1.0)
    assert config.reward.targets == ("b:2", "c:3")
    assert config.reward.model == "m@stable"


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("ppo.stop_kl=0.1", 0.1),
        ("ppo.stop_kl=none", None),
        ("ppo.max_grad_norm=inf", math.inf),
        ("ppo.whiten_rewards=true", True),
        ("train.run=exp-17", "exp-17"),
        ("train.run=a=b", "a=b"),
        ("reward.targets=a:1", ("a:1",)),
    ],
)
def test_overrides_are_toml_or_plain_text(override: str, value: object) -> None:
    config = load_config(PPOConfig, None, [*REQUIRED, override])
    section, key = override.partition("=")[0].split(".")
    assert getattr(getattr(config, section), key) == value


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("ppo.learning_rat=1", "unknown setting ppo.learning_rat: did you mean ppo.learning_rate?"),
        ("poo.gamma=1", "unknown setting poo: did you mean ppo?"),
        ("learning_rate=1", "unknown setting learning_rate: did you mean critic.learning_rate or ppo.learning_rate?"),
        ("kl.zzz=1", "unknown setting kl.zzz; known here: estimator, coefficient"),
        ("ppo.batch_size=1.5", "ppo.batch_size is 1.5 (float): int is expected"),
        ("ppo.batch_size=true", "ppo.batch_size is True (bool): int is expected"),
        ("ppo.gamma=high", "ppo.gamma is 'high' (str): float is expected"),
        ("kl.estimator=k9", "kl.estimator is 'k9': choose one of 'k1', 'k2', 'k3'"),
        ("reward.targets=3", "reward.targets is 3: a list is expected"),
        ("ppo=3", "[ppo] is a section of settings, and 3 is none"),
        ("ppo.gamm.x=1", "unknown setting ppo.gamm: did you mean ppo.gamma?"),
        ("nonsense", "write it as section.key=value"),
    ],
)
def test_refused(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(PPOConfig, None, [*REQUIRED, override])
    assert message in str(caught.value)


def test_a_file_that_is_none_or_no_toml(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no config file at"):
        load_config(PPOConfig, tmp_path / "none.toml")
    path = tmp_path / "bad.toml"
    path.write_text("[ppo\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"bad\.toml is not TOML"):
        load_config(PPOConfig, path)


def test_written_settings_are_read_back(tmp_path: Path) -> None:
    config = make_config(
        tmp_path,
        reward={"targets": ["a:1"], "prompt_template": 'say "x"\n{prompt} ü', "input": "text", "clip": 3.5},
        ppo={"max_grad_norm": math.inf, "micro_batch_size": 2, "learning_rate": 3e-6},
    )
    path = tmp_path / "saved.toml"
    path.write_text(to_toml(config), encoding="utf-8")
    assert load_config(PPOConfig, path) == config


def test_changed_keys_are_dotted(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    other = replace(config, ppo=replace(config.ppo, gamma=0.5, gae_lambda=0.5))
    assert changed_keys(config, config) == []
    assert changed_keys(config, other) == ["ppo.gamma", "ppo.gae_lambda"]


def test_any_dataclass_can_be_read() -> None:
    assert from_mapping(UpdateConfig, {"batch_size": 4}) == UpdateConfig(batch_size=4)
