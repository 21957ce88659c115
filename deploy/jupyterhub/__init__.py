"""Example configurations of a JupyterHub whose users build images: one machine and Kubernetes."""
