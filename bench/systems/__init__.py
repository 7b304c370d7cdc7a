"""The systems under measurement, each behind ``base.System``."""
