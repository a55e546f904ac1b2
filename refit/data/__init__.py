"""From raw files to the prepared data set."""
