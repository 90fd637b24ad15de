"""Small programs, each about one rule of the kernel: a good one that keeps it, and a bad one that breaks it."""
