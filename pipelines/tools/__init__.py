"""Tools that work on the whole repository: repair it, verify it, try it, compare in it."""
