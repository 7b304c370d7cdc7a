"""From a replicated log to replicated state: machines, sessions, and the replica that drives them.

This file stays empty of imports, so that ``client/`` can name a machine's commands without
loading consensus or storage.
"""
