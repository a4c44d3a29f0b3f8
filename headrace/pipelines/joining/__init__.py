"""Parts of the joiner: its declaration, its open requests, in memory and in files, and the labels of requests."""
