"""What tests share: real services, a proxy that breaks connections, and waiting without guessing times."""
