"""A JupyterHub whose people build their own images: on one machine, and on Kubernetes."""
