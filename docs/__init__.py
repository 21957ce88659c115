"""The documentation: MyST pages, and programs that write the reference from the code."""
