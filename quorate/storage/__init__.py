"""The write-ahead log, the LMDB state store, and a memory twin of each."""
