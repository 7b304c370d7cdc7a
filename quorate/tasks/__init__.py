"""Task queues, workers and workflows as replicated state. See docs/architecture.md."""
