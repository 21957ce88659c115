"""The consumer, `rabbit2docker run`: build requests in, builder attempts beside an engine, events out."""
