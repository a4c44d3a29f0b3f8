"""This project's views."""
