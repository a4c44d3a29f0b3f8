"""Request and response bodies in formats other than JSON."""
