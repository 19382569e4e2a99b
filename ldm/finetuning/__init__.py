"""What competing methods and attacks share: training samples, float32 copies of weights, and the training loop."""
