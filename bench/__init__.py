"""Benchmarks: how much of the machine reaches the callers of the service, and how other servers do."""
