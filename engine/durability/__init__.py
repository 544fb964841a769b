"""What survives a crash: command journal, snapshots, execution log."""
