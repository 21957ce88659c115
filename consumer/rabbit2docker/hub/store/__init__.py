"""The store: requests, events and logs of a hub's builds, in SQLite or PostgreSQL."""
