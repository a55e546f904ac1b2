"""The CPU cores that this process may use."""


def usable_cores() -> int:
    """Physical cores, as far as the process's CPU affinity and its container's quota allow."""
    from joblib import cpu_count  # it comes with scikit-learn; only advice and `trainer.threads: auto` need it

    return int(cpu_count(only_physical_cores=True))
