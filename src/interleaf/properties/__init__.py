"""What must hold, one property a definition, with its reason and its source."""
