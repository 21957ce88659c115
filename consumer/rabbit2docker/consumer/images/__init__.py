"""Images: their names, and their lookup in the registry."""
