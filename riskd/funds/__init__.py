"""What is known of accounts' money in engines, and the words for moving it."""
