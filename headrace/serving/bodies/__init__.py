"""Forms of bodies beside JSON."""
