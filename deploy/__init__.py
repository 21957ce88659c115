"""What it takes to run the service: here, the services of a developer's machine."""
