"""A store that speaks S3: one machine registers, another serves, garbage is collected, and it may be away.

Run by ../test_artifacts_s3.py, in an environment of its own.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import s3fs
from moto.server import ThreadedMotoServer
from registrar import make_folder

from rm_server.errors import CatalogUnavailable
from rm_server.registry.home import Home, add_version, open_home

from ..conftest import serving  # noqa: TID252 – the folder above is no package with a name

_numbers = itertools.count(1)  # moto's buckets outlive its servers


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The server; everything that asks for S3 is sent there, child processes included."""
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "1",
    }.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    yield server
    server.stop()


@pytest.fixture
def url(s3: Any) -> str:
    """A folder of an empty bucket."""
    bucket = f"rewards-{next(_numbers)}"
    boto3.client("s3").create_bucket(Bucket=bucket)
    return f"s3://{bucket}/team/artifacts"


def rm_server(*arguments: object) -> Any:
    """What a command answers."""
    command = [sys.executable, "-m", "rm_server.cli", *map(str, arguments), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_one_machine_registers_and_another_fetches(tmp_path: Path, url: str) -> None:
    database = f"sqlite:///{tmp_path}/shared.db"
    catalog, artifacts = open_home(Home(tmp_path / "a", database, url))
    record, _ = add_version(catalog, artifacts, "m", make_folder(tmp_path / "v", "text"), actor="ann")
    _, other = open_home(Home(tmp_path / "b", database, url))
    other.verify(record.digest)
    assert other.shared is not None
    assert other.shared.digests() == (record.digest,)
    assert set(other.shared.sizes(record.digest)) == {"rules.json", "vocab.txt", "reward_model.json", "contents.txt"}


def test_a_server_serves_what_another_machine_registered(tmp_path: Path, url: str) -> None:
    database = f"sqlite:///{tmp_path}/shared.db"
    catalog, artifacts = open_home(Home(tmp_path / "a", database, url))
    add_version(catalog, artifacts, "m", make_folder(tmp_path / "v", "text"), actor="ann")
    catalog.set_label("m", "stable", 1, "ann")
    catalog.close()
    with serving(tmp_path / "b", "--catalog", database, "--artifacts", url) as target:
        (model,) = rm_server("models", "--server", target)
    assert [(version["state"], version["labels"]) for version in model["versions"]] == [("ready", ["stable"])]


def test_the_command_collects_what_no_version_names(tmp_path: Path, url: str) -> None:
    home = Home(tmp_path / "a", artifacts=url)
    catalog, artifacts = open_home(home)
    kept, _ = add_version(catalog, artifacts, "m", make_folder(tmp_path / "v", "kept"), actor="ann")
    lost = artifacts.put(make_folder(tmp_path / "w", "lost"))
    options = ("--home", home.path, "--artifacts", url, "--min-age-hours", "0")
    wanted = [(lost, str(artifacts.root)), (lost, url)]
    for option in ("--dry-run", "--min-age-hours=0"):
        answer = rm_server("gc", *options, option)
        assert [(item["digest"], item["place"]) for item in answer["artifacts"]] == wanted
        assert answer["bytes"] == 2 * artifacts.size(kept.digest)
    assert artifacts.shared is not None
    assert artifacts.shared.digests() == (kept.digest,)
    assert rm_server("gc", *options)["artifacts"] == []


def test_a_store_that_is_away_is_said(tmp_path: Path, url: str, s3: Any) -> None:
    catalog, artifacts = open_home(Home(tmp_path / "a", artifacts=url))
    s3.stop()
    with pytest.raises(CatalogUnavailable, match=r"artifact store s3://rewards-\d+/team/artifacts cannot be used now"):
        add_version(catalog, artifacts, "m", make_folder(tmp_path / "v", "text"), actor="ann")
    assert catalog.revision() == 0


def test_a_bucket_that_is_not_there_is_said(tmp_path: Path, s3: Any) -> None:
    catalog, artifacts = open_home(Home(tmp_path / "a", artifacts="s3://nowhere/x"))
    with pytest.raises(CatalogUnavailable, match=r"artifact store s3://nowhere/x"):
        add_version(catalog, artifacts, "m", make_folder(tmp_path / "v", "text"), actor="ann")
    assert catalog.revision() == 0
