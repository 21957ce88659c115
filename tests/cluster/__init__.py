"""Tests against a real Kubernetes cluster, and what starts one."""
