"""What is done to a system under test: faults in packages, each with its healing."""
