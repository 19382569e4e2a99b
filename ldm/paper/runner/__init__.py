"""Trainings, evaluations and attacks as pieces of work, and the queue from which workers take them."""
