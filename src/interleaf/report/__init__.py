"""A finding told to a person: terminal, HTML, Perfetto, JSON."""
