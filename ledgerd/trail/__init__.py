"""What the journal of money says of every row of custody, and holding the rows against it."""
