"""The caller's trace, handed on to the server; nothing where the program does not use OpenTelemetry."""

from __future__ import annotations

import sys


def trace_metadata() -> tuple[tuple[str, str], ...]:
    """gRPC metadata with the current span's context, as the program's propagator writes it; W3C's `traceparent`, say.

    Whoever has a current span has imported OpenTelemetry: nobody else pays for the import.
    """
    if "opentelemetry.trace" not in sys.modules:
        return ()
    from opentelemetry import propagate

    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return tuple((name.lower(), value) for name, value in carrier.items())
