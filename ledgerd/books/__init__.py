"""Rows of the books as arrays: their binary form in COPY, and what is hashed of them."""
