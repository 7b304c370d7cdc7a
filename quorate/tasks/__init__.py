"""Queues of tasks, workers and workflows: one machine of the log, and what it is made of."""
