"""Tools of the repository itself: run from its root, not installed with the package."""
