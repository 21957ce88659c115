"""The contract of rabbit2docker: what travels through RabbitMQ, and nothing else.

Imports pydantic and the standard library only, so that a hub can install and import it without the service.
"""
