"""WebSocket: what clients ask, what they are told together, and the life of one connection."""
