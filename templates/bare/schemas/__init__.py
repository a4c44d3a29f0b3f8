"""This project's events."""
