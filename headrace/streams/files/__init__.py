"""Event logs in files: finding the files, and reading every supported format."""
