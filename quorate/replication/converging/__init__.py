"""The second tier: CRDT data that every node takes writes for, cut off or not, and that converges.

``engine`` carries operations out and makes them durable, ``disseminating`` passes them on,
``reconciling`` repairs whoever missed too much, ``levels`` says how widely something is known.
"""
