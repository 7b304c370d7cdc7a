"""What every room may use: types, limits, invariants, frames. Imports nothing of quorate but its errors."""
