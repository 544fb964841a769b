"""How the tables came to be, one step a file: run by `ledgerd.database.migrate`, as the owner."""
