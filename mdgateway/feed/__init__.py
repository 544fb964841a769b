"""What is told of a pair: its publication, the subscriptions to it, the words of the wire."""
