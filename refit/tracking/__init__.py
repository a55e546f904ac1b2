"""Watches and records: MLflow, its outbox and registry, other loggers, callbacks of a fit. Changes no result."""
