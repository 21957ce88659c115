"""Image builds for JupyterHubs: requests arrive in RabbitMQ, results leave as events."""
