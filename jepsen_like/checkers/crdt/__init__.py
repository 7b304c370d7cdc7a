"""Judging histories of converging data: what was seen by what, and what values must be then."""
