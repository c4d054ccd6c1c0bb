"""Diffusion of what an autoencoder makes of images."""
