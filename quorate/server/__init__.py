"""One node process: configuration, TLS, listeners, metrics and the command line."""
