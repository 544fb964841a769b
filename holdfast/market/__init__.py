"""Market data for its consumers: books that are always consistent, trades, tickers, candles."""
