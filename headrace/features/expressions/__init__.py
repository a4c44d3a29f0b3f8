"""Expressions of views: which are allowed, what they compute for rows and reads, and what happens where they fail."""
