"""What the test finds in a classifier: metrics, baselines and advice."""
