"""What every room may use: types, limits, invariants, frames, the records of built-in machines.

Imports nothing of quorate but its errors.
"""
