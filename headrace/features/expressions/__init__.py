"""Expressions of views: which are allowed, how they are evaluated for events and reads, and how they fail."""
