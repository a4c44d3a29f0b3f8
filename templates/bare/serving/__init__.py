"""This project's Serve app."""
