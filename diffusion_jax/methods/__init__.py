"""What can be trained: each method gives `init` and `loss` to the one training loop, and `sample` to the jobs."""
