"""Its metadata.txt cannot be read."""
