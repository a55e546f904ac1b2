"""What a run found, as figures, pictures and one page."""
