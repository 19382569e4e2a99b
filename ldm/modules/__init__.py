"""Layers of the frozen model, and the hook through which a learned prefix enters it."""
