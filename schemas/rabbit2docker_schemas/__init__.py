"""The contract of rabbit2docker: the messages that travel through RabbitMQ, their names, and the providers.

It imports only pydantic and the standard library, so that a hub can use it without the service.
"""
