"""Folders to register, as the program makes them that the tests of crashes run and kill."""

from __future__ import annotations

from bench.storms.registrar import make_folder

__all__ = ["make_folder"]
