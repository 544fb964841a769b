"""Candles: made from trades, kept over restarts, filled in from the execution log."""
