"""The service for a JupyterHub, `rabbit2docker hub`: builds over HTTP, and a store of builds and logs."""
