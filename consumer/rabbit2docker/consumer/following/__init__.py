"""From an attempt's lines and end to events: batches, progress, the verdict, and one terminal event."""
