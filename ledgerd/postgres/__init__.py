"""The embedded PostgreSQL as a process of its own, for an exchange that several services use."""
