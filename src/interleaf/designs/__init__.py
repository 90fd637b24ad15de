"""Kernel versions and proposed patches, each a value: what differs, and nothing else."""
