"""A real Kubernetes cluster for tests.

The cluster that KUBECONFIG names is used as it is. Without one, k3s runs in the Docker engine where images can be
pulled; elsewhere a cluster of two nodes is put together from Go modules and Debian packages, as plain processes of
this machine. What is started here is written down in `.run/cluster` and ended from there.
"""
