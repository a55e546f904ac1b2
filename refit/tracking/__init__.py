"""Who watches and records: MLflow, its outbox, the registry, loggers. Decides nothing."""
