"""What clients do during a run, and what must be true of it afterwards."""

from jepsen_like.workloads.registry import WORKLOADS

__all__ = ["WORKLOADS"]
