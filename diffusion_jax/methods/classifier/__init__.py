"""Classifiers of noisy images, by which diffusion is guided."""
