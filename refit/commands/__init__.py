"""What `make` runs that is neither a stage nor a flow."""
