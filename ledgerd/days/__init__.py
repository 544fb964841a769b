"""Closing the books day by day: what a close is, and when one is due."""
