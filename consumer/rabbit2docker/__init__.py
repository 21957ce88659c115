"""Image builds for JupyterHubs: requests arrive through RabbitMQ, results leave as events."""
