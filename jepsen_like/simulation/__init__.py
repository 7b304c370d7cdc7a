"""Whole nodes in one thread on virtual time, with a network and disks that fail."""
