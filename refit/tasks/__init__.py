"""What a label is: its target, loss, measures and per-image score, and how an answer reads."""
