"""Raft as a pure function, ``Core.step(event) -> Output``: no clock, socket, disk or async."""
