"""A gateway whose source is another gateway, so that fan-out is a tree."""
