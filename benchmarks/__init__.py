"""Measure Refit's speed as ratios to named baselines measured in the same run. Not part of the tests."""
