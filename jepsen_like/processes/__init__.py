"""Real node processes on loopback, and what is done to them."""
