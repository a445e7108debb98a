"""The benchmark: qgisd beside its peers on the same work, `python -m bench`."""
