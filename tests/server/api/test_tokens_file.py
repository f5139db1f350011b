"""The tokens file on disk: its mode, what stays in it, what is refused, two writers at once."""

from __future__ import annotations

import stat
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest

from rm_server.api.buckets import Limits
from rm_server.api.roles import Role
from rm_server.api.tokens import TokenEntry, hash_of
from rm_server.api.tokens_file import TOKEN_BYTES, add_token, new_token, read_tokens, revoke_token
from rm_server.config import ConfigError


def entry(name: str, **others: object) -> TokenEntry:
    return TokenEntry(name, Role.SCORE, sha256=hash_of(name), **others)  # type: ignore[arg-type]


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "tokens.toml"
    full = entry(
        "a",
        expires=datetime(2027, 1, 31, 12, tzinfo=UTC),
        models=('quo"te', "style-*", "\x7f\u00e9"),
        limits=Limits(0.5, 1e22, 3),
    )
    certificate = TokenEntry("b", Role.ADMIN, certificate="CN with spaces")
    add_token(path, full)
    add_token(path, certificate)
    assert read_tokens(path) == (full, certificate)
    assert revoke_token(path, "a") == full
    assert read_tokens(path) == (certificate,)


def test_a_new_file_is_its_owner_s_alone_and_an_old_one_keeps_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "tokens.toml"
    add_token(path, entry("a"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o640)
    add_token(path, entry("b"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert [other.name for other in tmp_path.iterdir()] == ["tokens.toml"]


def test_after_the_last_one_nobody_may_call(tmp_path: Path) -> None:
    path = tmp_path / "tokens.toml"
    add_token(path, entry("a"))
    revoke_token(path, "a")
    assert read_tokens(path) == ()
    add_token(path, entry("b"))
    assert [token.name for token in read_tokens(path)] == ["b"]


def test_what_people_wrote_stays(tmp_path: Path) -> None:
    path = tmp_path / "tokens.toml"
    add_token(path, entry("a"))
    path.write_text("# ours\n" + path.read_text().replace('name = "a"', 'name = "a"  # the first trainer'))
    add_token(path, entry("b"))
    revoke_token(path, "b")
    assert "# ours" in path.read_text()
    assert "# the first trainer" in path.read_text()
    revoke_token(path, "a")  # the last one
    add_token(path, entry("c"))
    assert path.read_text().startswith("# ours\n")
    assert [token.name for token in read_tokens(path)] == ["c"]


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    link = tmp_path / "tokens.toml"
    link.symlink_to(tmp_path / "real" / "tokens.toml")
    add_token(link, entry("a"))
    add_token(link, entry("b"))
    assert link.is_symlink()
    assert len(read_tokens(tmp_path / "real" / "tokens.toml")) == 2


def test_a_second_one_of_a_name_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "tokens.toml"
    add_token(path, entry("a"))
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="has a token 'a' already"):
        add_token(path, TokenEntry("a", Role.ADMIN, certificate="x"))
    with pytest.raises(ConfigError, match="name is 'a b'"):
        add_token(path, entry("a b"))
    with pytest.raises(ConfigError, match="has no token 'c'; it has a"):
        revoke_token(path, "c")
    assert path.read_bytes() == before


def test_a_file_that_cannot_be_changed_safely_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "tokens.toml"
    inline = ", ".join(f'{{name = "{name}", role = "score", sha256 = "{hash_of(name).hex()}"}}' for name in ("a", "b"))
    path.write_text(f"token = [{inline}]\n")
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="take a out by hand"):
        revoke_token(path, "a")
    with pytest.raises(ConfigError, match="is no TOML"):
        add_token(path, entry("c"))
    assert path.read_bytes() == before


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="There is no tokens file"):
        read_tokens(tmp_path / "tokens.toml")
    with pytest.raises(ConfigError, match="There is no tokens file"):
        revoke_token(tmp_path / "tokens.toml", "a")
    with pytest.raises(ConfigError, match="cannot be opened"):
        add_token(tmp_path / "none" / "tokens.toml", entry("a"))


def test_nothing_is_lost_when_several_write_at_once(tmp_path: Path) -> None:
    path = tmp_path / "tokens.toml"
    threads = [threading.Thread(target=add_token, args=(path, entry(f"t{number}"))) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {token.name for token in read_tokens(path)} == {f"t{number}" for number in range(20)}


def test_tokens_are_random_and_long_enough() -> None:
    tokens = {new_token() for _ in range(100)}
    assert len(tokens) == 100
    assert TOKEN_BYTES == 32
    assert all(len(token) == len("rm_") + 43 for token in tokens)  # base64 of 32 bytes
