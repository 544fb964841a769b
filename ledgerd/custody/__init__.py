"""Money that enters and leaves: custodians, what they say, and what the books make of it."""
