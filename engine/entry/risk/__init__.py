"""What order entry asks the risk service: money for orders that lack it, and message rates."""
