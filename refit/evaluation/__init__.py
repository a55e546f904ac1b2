"""Metrics of a model's answers, and comparisons of models."""
