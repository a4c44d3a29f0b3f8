"""An entity's state: in memory as rows of a slab, and packed as a record."""
