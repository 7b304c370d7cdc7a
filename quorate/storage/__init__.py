"""The write-ahead log, the state store and the element store on LMDB, and a memory twin of each."""
