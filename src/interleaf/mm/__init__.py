"""The host's memory manager: pages, mappings, MMU notifiers, fork, transparent huge pages."""
