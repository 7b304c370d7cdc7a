"""PySyncObj under test: several members in one thread, on virtual time.

The library is used as it is installed. It lets its transport be replaced; its clock, its source of
chance and its journal are names in its modules, replaced while a run lasts. What its members do is
watched from outside by ``watch``, which knows of Raft and not of PySyncObj.
"""
