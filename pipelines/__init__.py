"""When and where stages run: Prefect flows over DVC's graph. Nothing here imports torch."""
