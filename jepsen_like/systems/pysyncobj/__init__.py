"""PySyncObj under test, in two ways.

On virtual time: several members in one thread. The library is used as it is installed. It lets its
transport be replaced; its clock, its source of chance and its journal are names in its modules,
replaced while a run lasts. What its members do is watched from outside by ``watch``, which knows of
Raft and not of PySyncObj.

As real processes (``processes``, ``node``, ``wire``): one member each, nothing replaced.
"""
