"""What the four scripts run: identity table, quality table, drift, several models, identity images, and the end of a training."""
