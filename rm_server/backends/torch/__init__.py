"""Sequence classifiers in torch: forwards without padding, attention, prepacked layers, adapters."""
