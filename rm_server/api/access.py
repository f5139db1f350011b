"""Who calls and whether they may: a token or a certificate becomes a caller, with its role, models and limits."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Any

from rm_server.api.buckets import Usage
from rm_server.api.roles import Role, Rule
from rm_server.api.tokens import SINGLE_TOKEN_NAME, TokenEntry, hash_of
from rm_server.config import ConfigError
from rm_server.errors import ModelNotFound, PermissionDenied, RateLimited, RmError, Unauthenticated
from rm_server.metrics import Metrics
from rm_server.registry.home import operating_system_user

logger = logging.getLogger(__name__)

Identities = Callable[[], Iterable[str]]
"""Finds out the names in the caller's certificate; asked only where some entry names a certificate."""

_NOTHING: AbstractContextManager[None] = nullcontext()


def no_identities() -> Iterable[str]:
    """Of a caller that showed no certificate."""
    return ()


class Permit:
    """That a call may begin, and for whom. This one asks nothing more: there are no tokens, or the method is public."""

    __slots__ = ("actor",)

    def __init__(self, actor: str) -> None:
        self.actor = actor

    def admit(self, request: Any) -> AbstractContextManager[None]:
        """Surrounds the work on one request, a message or HttpScoring.

        Raises PermissionDenied, RateLimited and Unauthenticated.
        """
        return _NOTHING

    def check_model(self, model: str) -> None:
        """Raises PermissionDenied where the token is not for a model that the request reaches by another one."""

    def check(self, request: Any) -> None:
        """Raises PermissionDenied and Unauthenticated where `admit` would by now. For answers that go on: the token may
        have expired, be in the file no more, or for other models.
        """


class Caller:
    """A token's entry and what it uses, for as long as it is in the file. Surrounds a request that was let in."""

    __slots__ = ("entry", "expires_at", "is_expiry_told", "is_free", "usage")

    def __init__(self, entry: TokenEntry, usage: Usage) -> None:
        self.usage = usage
        self.set_entry(entry)

    def set_entry(self, entry: TokenEntry) -> None:
        """The same credential, with another role, say. Calls under way go on under the new entry."""
        self.entry: TokenEntry | None = entry
        self.is_expiry_told = False
        self.is_free = entry.limits.is_none and not entry.models  # its requests need nobody beside them
        self.expires_at = entry.expires.timestamp() if entry.expires is not None else float("inf")

    def revoke(self) -> None:
        """The credential is in the file no more."""
        self.entry = None

    def __enter__(self) -> None:
        """The request was counted already when it was let in."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.usage.end()
        if isinstance(error, ModelNotFound) and (self.entry is None or self.entry.models):
            # Its text names the models that there are, and this token shall know only of its own.
            raise ModelNotFound("The catalog has no model of the name that was asked for.") from None


class CallerPermit(Permit):
    """The permit of a caller: each request is held against the entry as it is then."""

    __slots__ = ("_access", "_caller", "_rule")

    def __init__(self, access: Access, caller: Caller, rule: Rule, actor: str) -> None:
        super().__init__(actor)
        self._access = access
        self._caller = caller
        self._rule = rule

    def admit(self, request: Any) -> AbstractContextManager[None]:
        return self._access.admit(self._caller, self._rule, request)

    def check_model(self, model: str) -> None:
        self._access.check_model(self._caller, model)

    def check(self, request: Any) -> None:
        self._access.check(self._caller, self._rule, request)


class Access:
    """Knows the callers. Without any tokens everybody may do everything: the server listens on loopback then.

    ``token``: the one token, if it is known already; empty: none, or see `use_token`. ``time_s`` is UTC's, for expiry;
    ``clock`` never runs backwards, for limits.
    """

    def __init__(
        self,
        metrics: Metrics,
        token: str = "",
        *,
        time_s: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._metrics = metrics
        self._time_s = time_s
        self._clock = clock
        self._single: tuple[TokenEntry, ...] = ()
        self._entries: Sequence[TokenEntry] = ()
        self._callers: dict[bytes | str, Caller] = {}
        self._has_certificates = False
        # What a public method's caller is called, and, where there are no tokens, every caller.
        self._public = Permit("")
        self._open: Permit | None = Permit(operating_system_user())
        if token:
            self.use_token(token)

    def use(self, entries: Sequence[TokenEntry]) -> None:
        """From now on these entries, and the one token, decide; no entries: nobody but the one token may call.

        A credential that stays keeps what it uses, by its name; calls under way with one that goes are told so.
        Raises ConfigError, and changes nothing, where an entry is the one token's twin.
        """
        self._take_over(self._single, entries)

    def use_token(self, token: str) -> None:
        """From now on this is the one token, of ``token`` or ``token_file``, beside the entries. Raises ConfigError as
        `use` does."""
        self._take_over((TokenEntry(SINGLE_TOKEN_NAME, Role.ADMIN, sha256=hash_of(token)),), self._entries)

    def _take_over(self, the_one: tuple[TokenEntry, ...], entries: Sequence[TokenEntry]) -> None:
        for entry in entries:
            for single in the_one:
                if entry.name == single.name or entry.credential == single.credential:
                    raise ConfigError(
                        f"auth.tokens: the entry {entry.name} has the name or the token of `token` or `token_file`, "
                        "whose name is 'token'; keep one of them."
                    )
        now = self._clock()
        usages = {caller.entry.name: caller.usage for caller in self._callers.values() if caller.entry is not None}
        callers: dict[bytes | str, Caller] = {}
        for entry in (*the_one, *entries):
            usage = usages.get(entry.name)
            if usage is None:
                usage = Usage(entry.limits, now)
            usage.set_limits(entry.limits, now)
            caller = self._callers.pop(entry.credential, None)
            if caller is None or caller.entry is None or caller.entry.name != entry.name:
                if caller is not None:
                    caller.revoke()
                caller = Caller(entry, usage)
            else:
                caller.set_entry(entry)
            callers[entry.credential] = caller
        for gone in self._callers.values():
            gone.revoke()
        self._single, self._entries, self._callers = the_one, entries, callers
        self._has_certificates = any(isinstance(credential, str) for credential in callers)
        self._open = None

    def permit(
        self,
        rule: Rule,
        authorization: str | bytes | None,
        identities: Identities = no_identities,
    ) -> Permit:
        """Lets a call begin, by the value of ``authorization`` (``Bearer <token>``) or the caller's certificate.

        Raises Unauthenticated and PermissionDenied.
        """
        if self._open is not None:
            return self._open
        if rule.role is Role.PUBLIC:
            return self._public
        if (caller := self._known(authorization, identities)) is None:
            raise self._refused(_unauthenticated())
        entry = self.living_entry(caller)
        self._check_role(entry, rule.role)
        return CallerPermit(self, caller, rule, entry.name)

    def can_see(self, model: str, authorization: str | bytes | None, identities: Identities = no_identities) -> bool:
        """Whether a public answer may tell the caller of the model: to all without tokens, else to who may read of it.

        Nobody is refused, so nothing is counted.
        """
        if self._open is not None:
            return True
        caller = self._known(authorization, identities)
        entry = caller.entry if caller is not None and self._time_s() < caller.expires_at else None
        return entry is not None and entry.can_touch(model)

    def living_entry(self, caller: Caller) -> TokenEntry:
        """The caller's entry. Raises Unauthenticated once it has expired or is gone."""
        entry = caller.entry
        if entry is None:
            raise self._refused(_unauthenticated())
        if self._time_s() >= caller.expires_at:
            if not caller.is_expiry_told:
                caller.is_expiry_told = True  # once: whoever shows it may do so a thousand times a second
                logger.warning("a token that has expired is shown", extra={"token": entry.name})
            raise self._refused(_unauthenticated())
        return entry

    def admit(self, caller: Caller, rule: Rule, request: Any) -> AbstractContextManager[None]:
        """Counts a request against the caller's limits and surrounds its work.

        Raises RateLimited, and what `check` raises.
        """
        self.check(caller, rule, request)
        if caller.is_free:
            return _NOTHING
        num_items = rule.items(request) if rule.items is not None else 0
        if (reached := caller.usage.begin(num_items, self._clock())) is not None:
            limit, retry_after_s = reached
            allowed = getattr(caller.usage.limits, limit)
            raise self._refused(
                RateLimited(f"This token's {limit} is {allowed:g}; that is reached.", retry_after_s=retry_after_s)
            )
        return caller

    def check(self, caller: Caller, rule: Rule, request: Any) -> None:
        """Raises PermissionDenied and Unauthenticated; models that there are and those that there are not are refused
        alike.
        """
        entry = self.living_entry(caller)
        self._check_role(entry, rule.role_for(request))
        if entry.models:
            model = rule.model_of(request)
            if rule.is_whole_server or (model is not None and not entry.can_touch(model)):
                raise self._refused(_not_its_model(entry, model))

    def check_model(self, caller: Caller, model: str) -> None:
        """Raises PermissionDenied where the caller's token is not for the model; Unauthenticated."""
        entry = self.living_entry(caller)
        if not entry.can_touch(model):
            raise self._refused(_not_its_model(entry, model))

    def _known(self, authorization: str | bytes | None, identities: Identities) -> Caller | None:
        if authorization:
            text = authorization.decode("utf-8", "replace") if isinstance(authorization, bytes) else authorization
            scheme, _, token = text.partition(" ")
            # A plain lookup is right: how long it takes depends on the hash of what was shown, and nobody can choose
            # a token by the first bytes of its hash so as to come nearer to a hash that is here.
            if scheme.lower() == "bearer" and (caller := self._callers.get(hash_of(token.strip()))) is not None:
                return caller
        elif self._has_certificates:
            for identity in identities():
                if (caller := self._callers.get(identity)) is not None:
                    return caller
        return None

    def _check_role(self, entry: TokenEntry, role: Role) -> None:
        if entry.role < role:
            raise self._refused(
                PermissionDenied(f"This token has the role {entry.role.word}; the call needs {role.word}.")
            )

    def _refused(self, error: RmError) -> RmError:
        self._metrics.access_refused(error.reason)
        return error


def _not_its_model(entry: TokenEntry, model: str | None) -> PermissionDenied:
    what = f"the model {model!r}" if model else "all models at once"
    return PermissionDenied(f"This token is for {', '.join(entry.models)}; the call concerns {what}.")


def _unauthenticated() -> Unauthenticated:
    """One text for all: whether a token was known once is nobody's business."""
    return Unauthenticated(
        "This server wants a token it knows, as `authorization: Bearer <token>` (our clients and commands: RM_TOKEN)."
    )


def grpc_identities(auth_context: Mapping[str, Sequence[bytes]]) -> list[str]:
    """The names in a client's certificate that gRPC has verified: the subject's common name and the alternatives."""
    keys = ("x509_common_name", "x509_subject_alternative_name")
    return [name.decode("utf-8", "replace") for key in keys for name in auth_context.get(key, ())]


def http_identities(certificate: Mapping[str, Any] | None) -> list[str]:
    """The same of what `ssl.SSLObject.getpeercert` gives."""
    if not certificate:
        return []
    names = [value for part in certificate.get("subject", ()) for key, value in part if key == "commonName"]
    return names + [value for _, value in certificate.get("subjectAltName", ())]
