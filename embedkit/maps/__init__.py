"""Vectors in, something to look at out: a map, a figure of it, a widget."""
