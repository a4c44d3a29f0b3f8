"""Entity state: rows of a slab in memory, and packed records."""
