"""Which versions exist: the catalog, and artifacts on disk."""
