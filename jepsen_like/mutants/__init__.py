"""Known bugs, put back on purpose: what the kit must catch."""
