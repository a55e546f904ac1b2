"""Tasks, such as classification: the targets, the loss, the metrics and the form of the answers."""
