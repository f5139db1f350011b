"""A folder with a tiny policy and prompts, made once a session and copied for each test that writes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from tiny_policies import save_id_prompts, save_policy

# Threads cost more than they bring on models this small, and much more where other tests run beside.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    save_policy(folder / "policy", "llama")
    save_id_prompts(folder / "prompts.jsonl")
    return folder


@pytest.fixture
def folder(made_once: Path, tmp_path: Path) -> Path:
    shutil.copytree(made_once, tmp_path, dirs_exist_ok=True)
    return tmp_path
