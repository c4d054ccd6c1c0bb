"""The two sides of a comparison, each a process of its own, so that neither has the other's threads or memory."""
