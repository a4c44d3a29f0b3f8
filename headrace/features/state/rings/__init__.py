"""Windows of sums, extremes and other cells: a ring of tiles for each entity."""
