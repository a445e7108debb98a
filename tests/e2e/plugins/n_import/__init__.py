"""Throws at import."""

raise ImportError("no module named frobnicate")
