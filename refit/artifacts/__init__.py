"""The files that stages exchange: one path, one reader and one writer for each."""
