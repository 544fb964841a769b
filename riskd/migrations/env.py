"""Run the migrations on the address that `riskd.storage.store.migrate` was given."""

from alembic import context
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

from riskd.storage.models import SCHEMA, Table

engine = create_engine(context.config.attributes["url"], poolclass=NullPool)
with engine.connect() as connection:
    # Two programs that start at once migrate one after the other.
    connection.exec_driver_sql("SELECT pg_advisory_lock(4851900102)")
    connection.exec_driver_sql(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}")
    connection.commit()
    context.configure(
        connection=connection, target_metadata=Table.metadata, version_table_schema=SCHEMA
    )
    with context.begin_transaction():
        context.run_migrations()
