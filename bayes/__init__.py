"""Bayesian neural networks by natural-gradient variational inference."""
