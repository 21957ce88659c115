"""The connection to RabbitMQ: the only package that imports an AMQP library."""
