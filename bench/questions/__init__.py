"""One question a file: what it measures, its rows, and the figures that answer it."""
