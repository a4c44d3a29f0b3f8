"""Lists: the newest events of each entity, with some of their values."""
