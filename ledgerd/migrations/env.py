"""Run the migrations on the address that `ledgerd.database.migrate` was given."""

from alembic import context
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool
from sqlmodel import SQLModel

import ledgerd.custody.models
import ledgerd.models  # noqa: F401 (the tables of both are the metadata)

engine = create_engine(context.config.attributes["url"], poolclass=NullPool)
with engine.connect() as connection:
    context.configure(connection=connection, target_metadata=SQLModel.metadata)
    with context.begin_transaction():
        # Two programs that start at once migrate one after the other.
        connection.exec_driver_sql("SELECT pg_advisory_xact_lock(4851900101)")
        context.run_migrations()
