"""What is counted of requests, as callers see them."""

from __future__ import annotations

from rm_server.metrics.families import VERSION, Families, VersionKey, label_values


class RequestMetrics:
    """Calls, their items and tokens, and who was not let in."""

    def __init__(self, families: Families) -> None:
        requests = families.counter(
            "rm_requests_total",
            "Calls answered, by what became of them; model and version are empty where none was chosen.",
            ("method", *VERSION, "reason"),
        )
        request_seconds = families.histogram(
            "rm_request_seconds", "From the arrival of a call to its answer.", ("method", *VERSION)
        )
        self._in_flight = families.gauge("rm_requests_in_flight", "Calls under way.")
        items = families.counter(
            "rm_items_total", "Completions answered, with a score or an error.", (*VERSION, "reason")
        )
        tokens = families.counter("rm_tokens_total", "Tokens scored.", VERSION)
        self._truncated = families.counter(
            "rm_truncated_items_total", "Completions scored after tokens were cut off.", VERSION
        )
        self._access_refusals = families.counter(
            "rm_auth_refusals_total",
            "Calls refused because of who called: unauthenticated, permission_denied or rate_limited.",
            ("reason",),
        )
        for reason in ("unauthenticated", "permission_denied", "rate_limited"):
            self._access_refusals.labels(reason)  # 0 from the start, so that the first one is an increase
        self._requests_of = families.remembered(requests.labels)
        self._request_seconds_of = families.remembered(request_seconds.labels)
        self._items_of = families.remembered(items.labels)
        self._tokens_of = families.remembered(tokens.labels)

    def request_started(self) -> None:
        """A call arrived."""
        self._in_flight.inc()

    def request_finished(self, method: str, key: VersionKey | None, reason: str, seconds: float) -> None:
        """A call was answered; ``key`` None where no version was chosen."""
        model, version = label_values(key)
        self._in_flight.dec()
        self._requests_of(method, model, version, reason).inc()
        self._request_seconds_of(method, model, version).observe(seconds)

    def items_finished(self, key: VersionKey, reason: str, num_items: int) -> None:
        """``num_items`` completions of one call were answered alike."""
        self._items_of(*label_values(key), reason).inc(num_items)

    def tokens_scored(self, key: VersionKey, num_tokens: int, num_truncated: int) -> None:
        """What one call's scored items came to."""
        self._tokens_of(*label_values(key)).inc(num_tokens)
        if num_truncated:
            self._truncated.labels(*label_values(key)).inc(num_truncated)

    def access_refused(self, reason: str) -> None:
        """A caller was not let in, or not to what it asked for."""
        self._access_refusals.labels(reason).inc()
