"""Inputs in, vectors out: one file a use case, and beside them what they share."""
