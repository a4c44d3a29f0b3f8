"""Declarations of labels: which events label an example, and when it is learned."""
