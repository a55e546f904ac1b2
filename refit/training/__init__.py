"""The Trainer, its Tuner and its callbacks."""
