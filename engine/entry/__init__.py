"""The parts of an order-entry process: inbox, order index, and the doors of the three services."""
