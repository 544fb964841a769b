"""What the risk service keeps: its tables, what is written to them, what an older copy lacks."""
