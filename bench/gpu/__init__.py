"""Benchmarks on a CUDA device: how much of its matrix products reaches the callers of the service."""
