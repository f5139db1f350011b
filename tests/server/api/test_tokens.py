"""What a tokens file may say; what is wrong in it is named, with the entry."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime

import pytest

from rm_server.api.buckets import Limits
from rm_server.api.roles import Role
from rm_server.api.tokens import TokenEntry, hash_of, parse_tokens
from rm_server.config import ConfigError

HASH = hashlib.sha256(b"rm_secret").hexdigest()
OTHER_HASH = "0" * 64


def entry(**changes: str) -> str:
    """An entry with these lines in place of, or beside, the usual ones; an empty line takes one away."""
    lines = {"name": '"trainer-1"', "sha256": f'"{HASH}"', "role": '"score"', **changes}
    return "[[token]]\n" + "".join(f"{key} = {value}\n" for key, value in lines.items() if value)


def test_the_least_that_an_entry_says() -> None:
    (token,) = parse_tokens(entry(), "tokens.toml")
    assert token == TokenEntry("trainer-1", Role.SCORE, sha256=hash_of("rm_secret"))
    assert token.expires is None
    assert token.limits.is_none
    assert token.can_touch("anything/at-all")


def test_all_that_an_entry_can_say() -> None:
    text = entry(
        role='"deploy"',
        expires="2027-01-31T01:00:00+01:00",
        models='["helpfulness", "style-*"]',
        max_requests_per_s="100",
        max_items_per_s="5000.0",
        max_concurrent_requests="32",
    )
    (token,) = parse_tokens(text, "tokens.toml")
    assert token.expires == datetime(2027, 1, 31, tzinfo=UTC)
    assert token.limits == Limits(100.0, 5000.0, 32)
    assert [token.can_touch(model) for model in ("helpfulness", "helpfulness2", "style-a/b", "STYLE-a", "", "h")] == [
        *(True, False, True, False, False, False)
    ]


def test_a_certificate_stands_for_a_token() -> None:
    (token,) = parse_tokens(entry(sha256="", certificate='"trainer.example.org"'), "tokens.toml")
    assert (token.credential, token.sha256) == ("trainer.example.org", b"")


def test_nobody_has_to_be_said() -> None:
    assert parse_tokens("token = []", "tokens.toml") == ()
    for text in ("", "# a file that is being written\n"):
        with pytest.raises(ConfigError, match=r"has no \[\[token\]\] entries"):
            parse_tokens(text, "tokens.toml")


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"name": ""}, "token 1: name is None"),
        ({"name": '"a b"'}, "name is 'a b'"),
        ({"name": "3"}, "name is 3"),
        ({"role": ""}, r"\(trainer-1\): role is None; one of score, deploy, admin"),
        ({"role": '"public"'}, "role is 'public'"),
        ({"role": '"SCORE"'}, "role is 'SCORE'"),
        ({"role": '["score"]'}, r"role is \['score'\]"),
        ({"role": "{a = 1}"}, "role is {'a': 1}"),
        ({"sha256": ""}, "one of sha256 and certificate"),
        ({"certificate": '"cn"'}, "one of sha256 and certificate"),
        ({"sha256": '"rm_secret"'}, "64 lower-case hexadecimal digits"),
        ({"sha256": f'"{HASH.upper()}"'}, "64 lower-case hexadecimal digits"),
        ({"sha256": "7"}, "64 lower-case hexadecimal digits"),
        ({"sha256": "", "certificate": '" "'}, "certificate is ' '"),
        ({"expires": "2027-01-31T00:00:00"}, "date-time with its zone"),
        ({"expires": "2027-01-31"}, "date-time with its zone"),
        ({"expires": "0001-01-01T00:00:00+01:00"}, "date-time with its zone"),
        ({"expires": '"90d"'}, "date-time with its zone"),
        ({"models": "[]"}, "models is"),
        ({"models": '"helpfulness"'}, "models is 'helpfulness'"),
        ({"models": "[1]"}, "models is"),
        ({"max_requests_per_s": "0"}, "a number above 0"),
        ({"max_items_per_s": "inf"}, "a number above 0"),
        ({"max_items_per_s": "nan"}, "a number above 0"),
        ({"max_items_per_s": "true"}, "a number above 0"),
        ({"max_items_per_s": '"fast"'}, "a number above 0"),
        ({"max_concurrent_requests": "1.5"}, "a whole number above 0"),
        ({"max_concurrent_requests": "0"}, "a whole number above 0"),
        ({"max_request_per_s": "1"}, "did you mean max_requests_per_s"),
    ],
)
def test_what_is_wrong_is_named(changes: dict[str, str], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint) as caught:
        parse_tokens(entry(**changes), "tokens.toml")
    assert str(caught.value).startswith("tokens.toml, token 1")


def test_a_file_that_is_no_tokens_file_is_refused() -> None:
    for text in ("[[token]", "token = 3", "token = [1]"):
        with pytest.raises(ConfigError, match=r"The tokens file tokens\.toml"):
            parse_tokens(text, "tokens.toml")
    with pytest.raises(ConfigError, match=r"has tokens; only \[\[token\]\]"):
        parse_tokens(entry().replace("[[token]]", "[[tokens]]"), "tokens.toml")


def test_two_entries_need_two_names_and_two_credentials() -> None:
    twin = entry(sha256=f'"{OTHER_HASH}"')
    with pytest.raises(ConfigError, match="the name of trainer-1 twice"):
        parse_tokens(entry() + twin, "tokens.toml")
    with pytest.raises(ConfigError, match="the token or certificate of trainer-2 twice"):
        parse_tokens(entry() + entry(name='"trainer-2"'), "tokens.toml")
    assert len(parse_tokens(entry() + entry(name='"trainer-2"', sha256=f'"{OTHER_HASH}"'), "tokens.toml")) == 2
