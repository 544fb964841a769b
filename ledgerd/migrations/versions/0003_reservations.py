"""Reservations: what riskd was asked to count against the daily limits, so that none is lost."""

from alembic import op

revision = "0003"
down_revision = "0002"

TABLES = """
CREATE TABLE withdrawal_reservations (
    id uuid PRIMARY KEY,
    withdrawal_id uuid NOT NULL,
    owner_id bigint NOT NULL,
    asset varchar NOT NULL,
    amount_units bigint NOT NULL,
    state smallint NOT NULL,
    changed_ns bigint NOT NULL
);
CREATE INDEX withdrawal_reservations_withdrawal ON withdrawal_reservations (withdrawal_id);
CREATE INDEX withdrawal_reservations_state ON withdrawal_reservations (state, changed_ns);
CREATE INDEX money_events_alarm ON money_events (number) WHERE alarm;
"""


def upgrade() -> None:
    """Make the table; the service may move its rows from state to state and nothing else."""
    for statement in TABLES.split(";\n"):
        if statement.strip():
            op.get_bind().exec_driver_sql(statement)
    op.execute(
        "CREATE TRIGGER withdrawal_reservations_stay BEFORE DELETE OR TRUNCATE"
        " ON withdrawal_reservations FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()"
    )
    op.execute(
        "GRANT SELECT, INSERT, UPDATE (state, changed_ns) ON withdrawal_reservations"
        " TO holdfast_service"
    )
