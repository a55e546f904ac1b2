"""A classifier's part of the report."""
