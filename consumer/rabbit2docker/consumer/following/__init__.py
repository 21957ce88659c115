"""Following: the log lines of an attempt become events, and its end becomes one outcome and one terminal event."""
