"""Shared parts of baselines and attacks: training samples, float32 copies of weights, and the training loop."""
