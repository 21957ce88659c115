"""What a hub remembers of its builds: requests, events and logs, in SQLite or PostgreSQL."""
