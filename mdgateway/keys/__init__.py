"""Who may ask for how much market data: keys of its own, tiers, and counts of what is open."""
