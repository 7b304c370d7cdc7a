"""What clients do during a run, and what must be true of it afterwards."""
