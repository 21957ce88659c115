"""Everything that touches RabbitMQ. aio-pika is imported here only, and its errors end here."""
