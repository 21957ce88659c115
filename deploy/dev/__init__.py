"""The services that a developer's machine needs: a Docker engine, RabbitMQ, a registry and a git server.

What the machine has is used; what it lacks is pulled as an image, or made from Debian packages where no image
registry can be reached. Everything that is started here is written down in `.run/` and ended from there.
"""
