"""What stages hand one another: each file's one path, one reader and one writer."""
