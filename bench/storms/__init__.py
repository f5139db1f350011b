"""Storms: what must not be seen by callers while versions come and go, each asked of a real server."""
