"""What serving knows of its store: whether Redis answers, and which versions of the views it holds."""
