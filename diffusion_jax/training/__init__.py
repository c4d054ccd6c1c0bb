"""The one training loop: it knows the interface of methods and an iterator of batches, and nothing of what they are."""
