"""From a message to a build: read, check, resolve, look in the registry, create or join, tell, acknowledge."""
