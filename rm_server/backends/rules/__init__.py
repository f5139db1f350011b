"""Versions without a network: a list of rules, of several kinds, each of which makes a number of token ids or text."""
