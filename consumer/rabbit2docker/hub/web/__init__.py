"""The HTTP service for a JupyterHub: BinderHub's routes and events over the builds of one tenant."""
