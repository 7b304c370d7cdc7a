"""CRDTs as pure functions: data that replicas change apart from each other, and join without loss.

A replica's whole data is one map from paths to small leaves of dots, under one causal context
(``dots``, ``context``, ``delta``, ``state``). A *kind* (``ORSet``, ``PNCounter``, ``ORMap``, ...)
says how operations change leaves and how leaves are read; it keeps nothing. Nothing here knows a
clock, a disk, a peer or chance.
"""
