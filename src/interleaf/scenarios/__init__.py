"""The library of scenarios: a VM, and a few tasks that race."""
