"""Files that change while the server serves: found, loaded or refused, and told."""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path

import fake_versions as fake
import pytest

from rm_server.api.reloading import WatchedFiles, watch
from rm_server.config import ConfigError
from rm_server.metrics import Metrics


class Files:
    def __init__(self, folder: Path) -> None:
        self.path = folder / "tokens.toml"
        self.path.write_text("one")
        self.loaded: list[str] = []
        self.metrics = Metrics()
        self.watched = WatchedFiles("tokens", (self.path,), self.load, self.metrics)

    def load(self) -> None:
        if not self.path.exists() or "broken" in (text := self.path.read_text()):
            raise ConfigError("tokens.toml is broken.")
        self.loaded.append(text)

    def sample(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(name, {"files": "tokens", **labels})


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def test_what_has_not_changed_is_not_loaded(files: Files) -> None:
    files.watched.poll()
    files.watched.poll()
    assert files.loaded == []


def test_a_change_is_loaded_once(files: Files) -> None:
    files.path.write_text("another")
    files.watched.poll()
    files.watched.poll()
    assert files.loaded == ["another"]
    assert files.sample("rm_reloads_total", reason="ok") == 1
    assert files.sample("rm_files_refused") == 0


def test_a_file_of_the_same_size_and_time_in_its_place_is_a_change(files: Files) -> None:
    before = files.path.stat()
    new = files.path.with_name("new")
    new.write_text("two")
    os.utime(new, ns=(before.st_atime_ns, before.st_mtime_ns))
    new.replace(files.path)
    files.watched.poll()
    assert files.loaded == ["two"]


def test_a_link_that_is_moved_is_a_change(tmp_path: Path) -> None:
    files = Files(tmp_path)
    (tmp_path / "elsewhere").write_text("elsewhere")
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "elsewhere")
    link.replace(files.path)
    files.watched.poll()
    assert files.loaded == ["elsewhere"]


def test_a_broken_file_is_told_once_and_a_whole_one_ends_it(files: Files, caplog: pytest.LogCaptureFixture) -> None:
    files.path.write_text("broken")
    with caplog.at_level(logging.ERROR):
        files.watched.poll()
        files.watched.poll()
    assert [record.getMessage() for record in caplog.records] == [
        "new files are refused, the old ones stay in use: tokens.toml is broken."
    ]
    assert (files.sample("rm_reloads_total", reason="refused"), files.sample("rm_files_refused")) == (1, 1)
    files.path.unlink()
    files.watched.poll()
    assert files.sample("rm_reloads_total", reason="refused") == 2
    files.path.write_text("whole")
    files.watched.poll()
    assert files.loaded == ["whole"]
    assert files.sample("rm_files_refused") == 0


def test_asked_for_it_loads_what_has_not_changed(files: Files) -> None:
    files.watched.reload()
    assert files.loaded == ["one"]


async def test_it_looks_until_it_is_cancelled_whatever_goes_wrong(
    files: Files, caplog: pytest.LogCaptureFixture
) -> None:
    def load() -> None:
        raise ZeroDivisionError

    broken = WatchedFiles("broken", (files.path,), load, files.metrics)
    watching = asyncio.ensure_future(watch([broken, files.watched], interval_s=0.0))
    for text in ("changed", "changed again"):
        files.path.write_text(text)
        await fake.until(lambda text=text: text in files.loaded)
    watching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watching
    assert files.loaded == ["changed", "changed again"]
    assert caplog.records[0].exc_info
    assert files.metrics.registry.get_sample_value("rm_files_refused", {"files": "broken"}) == 1
