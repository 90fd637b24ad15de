"""The TDP MMU: SPTEs, iterator, roots, map, zap, split, age, dirty."""
