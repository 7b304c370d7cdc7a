"""A kit that finds out whether replicated systems keep their promises under faults."""
