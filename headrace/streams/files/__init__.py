"""Event logs in files: finding them, and reading every supported format."""
