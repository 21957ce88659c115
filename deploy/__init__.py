"""Deployment: the chart, JupyterHub examples, and the services of a developer's machine."""
