"""Rings: windowed sums, extremes and other cells, in a ring of tiles per entity."""
