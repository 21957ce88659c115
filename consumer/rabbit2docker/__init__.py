"""rabbit2docker: build requests from RabbitMQ become images, and everybody who asked sees how."""
