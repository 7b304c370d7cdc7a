"""quorate: a Raft-replicated log, state machines and key-value store to embed in Python."""
