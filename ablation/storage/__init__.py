"""Where results are: a store's folder and databases, its locks, and what waits for a server."""
