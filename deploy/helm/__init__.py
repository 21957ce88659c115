"""The Helm chart, and what makes its schema."""
