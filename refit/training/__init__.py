"""Training: the Trainer, its Tuner and its callbacks."""
