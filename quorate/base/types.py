"""Distinct integers, so that mypy refuses a term where an index is meant."""

from __future__ import annotations

from typing import NewType

NodeId = NewType("NodeId", int)
"""A member of the cluster, 1 or more; never used again after the member was removed."""

Term = NewType("Term", int)
"""A Raft term; grows by elections, 0 before the first."""

LogIndex = NewType("LogIndex", int)
"""Position of an entry in the log, from 1; 0 means "before the first entry"."""

SessionId = NewType("SessionId", int)
"""A client session, from 1; 0 means "no session yet"."""

NO_NODE = NodeId(0)
NO_TERM = Term(0)
BEFORE_FIRST = LogIndex(0)
NO_SESSION = SessionId(0)
