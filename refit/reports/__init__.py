"""The results of a run as a summary, pictures and an HTML report."""
