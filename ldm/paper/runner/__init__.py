"""Trainings, evaluations and attacks as jobs, and the queue from which processes take them."""
