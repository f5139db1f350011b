"""Loaded versions, kept busy and fair."""
