"""A finding told: narration, selection, story, matrix, JSON."""
