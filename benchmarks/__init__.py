"""How fast Refit is, as ratios against named rivals measured in the same run. Not part of the tests."""
