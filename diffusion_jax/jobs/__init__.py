"""The jobs: each reads the work directory, does one thing, and leaves its files there."""
