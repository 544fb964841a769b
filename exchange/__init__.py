"""What the processes of one exchange agree on: memory, records, units and the wire contract."""
