"""One question a file: what it measures, its rows, and the figures that answer it.

``PLANNED_S`` is about how long a question takes on two quiet cores; those of `make bench` must stay under 15 minutes.
"""
