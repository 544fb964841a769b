"""The commands about money: one file for each group of them."""
