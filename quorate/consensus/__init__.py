"""Raft as a pure function: no clock, no socket, no disk, no async. ``Core.step(event) -> Output``."""
