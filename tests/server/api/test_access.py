"""Who is let in as whom, across expiry and a change of the entries; the clocks are the test's."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from rm_server.api.access import Access, grpc_identities, http_identities
from rm_server.api.buckets import Limits
from rm_server.api.roles import HttpScoring, Role, Rule
from rm_server.api.tokens import TokenEntry, hash_of
from rm_server.config import ConfigError
from rm_server.errors import ModelNotFound, PermissionDenied, RateLimited, Unauthenticated
from rm_server.metrics import Metrics
from rm_server.registry.home import operating_system_user

SCORE = Rule(Role.SCORE, "selector", lambda request: request.num_items)
DEPLOY, PUBLIC = Rule(Role.DEPLOY), Rule(Role.PUBLIC)
EXPIRY = datetime(2027, 1, 31, tzinfo=UTC)


class Clock:
    def __init__(self) -> None:
        self.now = EXPIRY.timestamp() - 10.0

    def __call__(self) -> float:
        return self.now


def access(*entries: TokenEntry, token: str = "", clock: Clock | None = None) -> Access:
    clock = clock or Clock()
    access = Access(Metrics(), token, time_s=clock, clock=clock)
    if entries:
        access.use(entries)
    return access


def entry(name: str, role: Role = Role.SCORE, **others: object) -> TokenEntry:
    """Its token is its name."""
    return TokenEntry(name, role, sha256=hash_of(name), **others)  # type: ignore[arg-type]


def bearer(token: str) -> str:
    return f"Bearer {token}"


def test_without_tokens_everybody_is_the_server_s_user() -> None:
    permit = access().permit(DEPLOY, None)
    assert permit.actor == operating_system_user()
    with permit.admit(HttpScoring("m", 1)), permit.admit(HttpScoring("any", 1_000_000)):
        permit.check(HttpScoring("m", 1))


def test_a_file_without_entries_lets_nobody_in() -> None:
    guarded = access()
    guarded.use(())
    with pytest.raises(Unauthenticated):
        guarded.permit(SCORE, None)
    assert guarded.permit(PUBLIC, None).actor == ""


@pytest.mark.parametrize(
    "authorization",
    [None, "", b"", "a", "Bearer", "Bearer ", "Bearer b", "Basic a", b"Bearer \xff", "Bearer a\ud800", "Bearera"],
)
def test_what_is_no_known_token_is_refused_with_one_text(authorization: str | bytes | None) -> None:
    with pytest.raises(Unauthenticated, match=r"^This server wants a token .*`authorization: Bearer .*RM_TOKEN"):
        access(entry("a")).permit(SCORE, authorization)


@pytest.mark.parametrize("authorization", ["Bearer a", "bearer a", b"Bearer a", "Bearer  a "])
def test_a_token_gives_its_name(authorization: str | bytes) -> None:
    assert access(entry("a")).permit(SCORE, authorization).actor == "a"


def test_the_one_token_is_an_admin_beside_the_others() -> None:
    both = access(entry("a"), token="old")
    assert both.permit(Rule(Role.ADMIN), bearer("old")).actor == "token"
    assert both.permit(SCORE, bearer("a")).actor == "a"
    for twin in (entry("token"), TokenEntry("b", Role.SCORE, sha256=hash_of("old"))):
        with pytest.raises(ConfigError, match="keep one of them"):
            both.use((twin,))
    assert both.permit(SCORE, bearer("a")).actor == "a"


def test_a_token_expires_while_a_stream_goes_on() -> None:
    clock = Clock()
    guarded = access(entry("a", expires=EXPIRY), clock=clock)
    permit = guarded.permit(SCORE, bearer("a"))
    with permit.admit(HttpScoring("m", 1)):
        clock.now = EXPIRY.timestamp() - 0.001
        permit.check(HttpScoring("m", 1))
        clock.now = EXPIRY.timestamp()
        with pytest.raises(Unauthenticated):
            permit.check(HttpScoring("m", 1))
    with pytest.raises(Unauthenticated):
        permit.admit(HttpScoring("m", 1))
    with pytest.raises(Unauthenticated, match="wants a token it knows"):
        guarded.permit(SCORE, bearer("a"))


def test_a_change_reaches_calls_under_way() -> None:
    guarded = access(entry("a", Role.DEPLOY), entry("b"))
    deploying, scoring = guarded.permit(DEPLOY, bearer("a")), guarded.permit(SCORE, bearer("b"))
    guarded.use((entry("a", Role.SCORE), entry("b", models=("mine",))))
    with pytest.raises(PermissionDenied, match="role score; the call needs deploy"):
        deploying.admit(object())
    scoring.check(HttpScoring("mine", 1))
    for hold in (scoring.admit, scoring.check):
        with pytest.raises(PermissionDenied, match="for mine; the call concerns the model 'theirs'"):
            hold(HttpScoring("theirs@1", 1))
    guarded.use((entry("a"),))
    with pytest.raises(Unauthenticated):
        scoring.check(HttpScoring("m", 1))
    with pytest.raises(Unauthenticated):
        guarded.permit(SCORE, bearer("b"))


def test_another_token_under_the_same_name_is_another_credential() -> None:
    guarded = access(entry("a"))
    before = guarded.permit(SCORE, bearer("a"))
    guarded.use((TokenEntry("a", Role.SCORE, sha256=hash_of("rotated")),))
    with pytest.raises(Unauthenticated):
        before.check(HttpScoring("m", 1))
    assert guarded.permit(SCORE, bearer("rotated")).actor == "a"


def test_the_same_token_under_another_name_is_another_caller() -> None:
    guarded = access(entry("a"))
    before = guarded.permit(SCORE, bearer("a"))
    guarded.use((TokenEntry("b", Role.SCORE, sha256=hash_of("a")),))
    with pytest.raises(Unauthenticated):
        before.check(HttpScoring("m", 1))
    assert guarded.permit(SCORE, bearer("a")).actor == "b"


def test_a_reload_does_not_refill_what_a_token_has_used() -> None:
    clock = Clock()
    limited = entry("a", limits=Limits(max_items_per_s=10.0))
    guarded = access(limited, clock=clock)
    with guarded.permit(SCORE, bearer("a")).admit(HttpScoring("m", 10)):
        guarded.use((limited, entry("b")))
    with pytest.raises(RateLimited, match="max_items_per_s is 10") as caught:
        guarded.permit(SCORE, bearer("a")).admit(HttpScoring("m", 10))
    assert caught.value.retry_after_s == pytest.approx(1.0)
    clock.now += 1.0
    with guarded.permit(SCORE, bearer("a")).admit(HttpScoring("m", 10)):
        pass


def test_a_call_that_fails_gives_its_place_back() -> None:
    guarded = access(entry("a", limits=Limits(max_concurrent_requests=1)))
    permit = guarded.permit(SCORE, bearer("a"))
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), permit.admit(HttpScoring("m", 1)):
            raise ZeroDivisionError
    with permit.admit(HttpScoring("m", 1)), pytest.raises(RateLimited, match="max_concurrent_requests is 1"):
        permit.admit(HttpScoring("m", 1))


def test_a_token_for_some_models_is_not_told_of_others() -> None:
    callers = access(entry("free"), entry("confined", models=("st*",)))

    def told(token: str) -> str:
        permit = callers.permit(SCORE, bearer(token))
        with pytest.raises(ModelNotFound) as raised, permit.admit(HttpScoring("stile", 1)):
            raise ModelNotFound("The catalog has no model 'stile'; it has secret, style.")
        return raised.value.message

    assert "secret" in told("free")
    assert "secret" not in told("confined")


def test_public_answers_tell_of_a_model_only_to_who_may_read_of_it() -> None:
    clock = Clock()
    guarded = access(
        entry("a"),
        entry("late", expires=EXPIRY),
        entry("mine", models=("mine",)),
        TokenEntry("ops", Role.SCORE, certificate="ops.example.org"),
        clock=clock,
    )
    for token in ("a", "late"):
        assert guarded.can_see("theirs", bearer(token))
    assert guarded.can_see("theirs", None, lambda: ["ops.example.org"])
    assert [guarded.can_see(model, bearer("mine")) for model in ("mine", "theirs")] == [True, False]
    assert not guarded.can_see("theirs", None)
    assert not guarded.can_see("theirs", bearer("wrong"))
    clock.now = EXPIRY.timestamp()
    assert not guarded.can_see("theirs", bearer("late"))
    assert access().can_see("theirs", None), "there are no tokens"
    refusals = guarded._metrics.registry.get_sample_value("rm_auth_refusals_total", {"reason": "unauthenticated"})
    assert refusals == 0


def test_a_certificate_is_asked_for_where_no_token_is_shown() -> None:
    guarded = access(entry("a"), TokenEntry("ops", Role.ADMIN, certificate="ops.example.org"))
    assert guarded.permit(SCORE, None, lambda: ["cn", "ops.example.org"]).actor == "ops"
    for authorization, identities in ((None, ["cn"]), (None, []), ("Bearer wrong", ["ops.example.org"])):
        with pytest.raises(Unauthenticated):
            guarded.permit(SCORE, authorization, lambda identities=identities: identities)  # type: ignore[misc]
    assert guarded.permit(SCORE, bearer("a"), lambda: ["ops.example.org"]).actor == "a"


def test_a_certificate_s_name_is_no_token() -> None:
    with pytest.raises(Unauthenticated):
        access(TokenEntry("ops", Role.ADMIN, certificate="ops")).permit(SCORE, bearer("ops"))


def test_the_names_in_a_certificate() -> None:
    context = {
        "x509_common_name": [b"trainer"],
        "x509_subject_alternative_name": [b"trainer.example.org", b"spiffe://a/b"],
        "transport_security_type": [b"ssl"],
    }
    names = ["trainer", "trainer.example.org", "spiffe://a/b"]
    assert grpc_identities(context) == names
    certificate = {
        "subject": ((("organizationName", "ops"),), (("commonName", "trainer"),)),
        "subjectAltName": (("DNS", "trainer.example.org"), ("URI", "spiffe://a/b")),
    }
    assert http_identities(certificate) == names
    assert http_identities(None) == grpc_identities({}) == []
