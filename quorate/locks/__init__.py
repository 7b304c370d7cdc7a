"""Machines of the log that hand out grants: locks, semaphores, elections, and barriers."""
