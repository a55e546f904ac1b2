"""From raw images to batches."""
