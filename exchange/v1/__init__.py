"""Generated from protos/exchange/v1 by `make proto`: never edited by hand."""
