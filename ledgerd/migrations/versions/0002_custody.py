"""Money that enters and leaves: addresses, deposits, withdrawals, and every change of state."""

from alembic import op

revision = "0002"
down_revision = "0001"

TABLES = """
CREATE TABLE deposit_addresses (
    address varchar PRIMARY KEY,
    asset varchar NOT NULL,
    owner_kind smallint NOT NULL,
    owner_id bigint NOT NULL,
    created_ns bigint NOT NULL
);
CREATE UNIQUE INDEX deposit_addresses_owner ON deposit_addresses (owner_kind, owner_id, asset);
CREATE TABLE deposits (
    id uuid PRIMARY KEY,
    transaction_id varchar NOT NULL,
    output_index bigint NOT NULL,
    asset varchar NOT NULL,
    address varchar NOT NULL,
    owner_kind smallint NOT NULL,
    owner_id bigint NOT NULL,
    amount_units bigint NOT NULL,
    state smallint NOT NULL,
    attempt bigint NOT NULL,
    withheld_units bigint NOT NULL,
    shortfall_units bigint NOT NULL,
    seen_ns bigint NOT NULL,
    changed_ns bigint NOT NULL,
    CONSTRAINT deposits_amount CHECK (amount_units > 0),
    CONSTRAINT deposits_withheld CHECK (withheld_units >= 0 AND shortfall_units >= 0
        AND withheld_units + shortfall_units <= amount_units)
);
CREATE UNIQUE INDEX deposits_payment ON deposits (transaction_id, output_index);
CREATE INDEX deposits_owner ON deposits (owner_id, asset, seen_ns);
CREATE INDEX deposits_state ON deposits (state);
CREATE TABLE withdrawal_addresses (
    id uuid PRIMARY KEY,
    owner_kind smallint NOT NULL,
    owner_id bigint NOT NULL,
    asset varchar NOT NULL,
    address varchar NOT NULL,
    actor varchar NOT NULL,
    added_ns bigint NOT NULL,
    usable_ns bigint NOT NULL,
    removed_ns bigint NOT NULL
);
CREATE INDEX withdrawal_addresses_owner ON withdrawal_addresses (owner_id, asset, address);
CREATE TABLE withdrawals (
    id uuid PRIMARY KEY,
    owner_kind smallint NOT NULL,
    owner_id bigint NOT NULL,
    asset varchar NOT NULL,
    amount_units bigint NOT NULL,
    address varchar NOT NULL,
    requester varchar NOT NULL,
    digest bytea NOT NULL,
    state smallint NOT NULL,
    approvals_needed smallint NOT NULL,
    limits_version bigint NOT NULL,
    requested_ns bigint NOT NULL,
    expires_ns bigint NOT NULL,
    changed_ns bigint NOT NULL,
    transaction_id varchar NOT NULL,
    reason varchar NOT NULL,
    CONSTRAINT withdrawals_amount CHECK (amount_units > 0)
);
CREATE INDEX withdrawals_owner ON withdrawals (owner_id, asset, requested_ns);
CREATE INDEX withdrawals_asset ON withdrawals (asset, requested_ns);
CREATE INDEX withdrawals_state ON withdrawals (state, changed_ns);
CREATE TABLE withdrawal_approvals (
    withdrawal_id uuid NOT NULL,
    approver varchar NOT NULL,
    digest bytea NOT NULL,
    time_ns bigint NOT NULL,
    PRIMARY KEY (withdrawal_id, approver)
);
CREATE TABLE custody_cursors (
    name varchar PRIMARY KEY,
    cursor bigint NOT NULL
);
CREATE TABLE money_events (
    number bigint PRIMARY KEY,
    subject uuid NOT NULL,
    kind smallint NOT NULL,
    state_from smallint NOT NULL,
    state_to smallint NOT NULL,
    actor varchar NOT NULL,
    reason varchar NOT NULL,
    time_ns bigint NOT NULL,
    alarm boolean NOT NULL,
    content bytea NOT NULL,
    previous bytea NOT NULL,
    hash bytea NOT NULL
);
CREATE INDEX money_events_subject ON money_events (subject, number);
"""
STAYING = ("deposit_addresses", "withdrawal_approvals", "money_events")
MOVING = {
    "deposits": "state, attempt, withheld_units, shortfall_units, changed_ns",
    "withdrawals": "state, changed_ns, transaction_id, reason",
    "withdrawal_addresses": "removed_ns",
    "custody_cursors": "cursor",
}
"""What the service may change: never whom, how much, or where to."""


def upgrade() -> None:
    """Make the tables; guard the rows that stay, and the columns that stay in the others."""
    for statement in TABLES.split(";\n"):
        if statement.strip():
            op.get_bind().exec_driver_sql(statement)
    for table in STAYING:
        op.execute(
            f"CREATE TRIGGER {table}_stay BEFORE UPDATE OR DELETE OR TRUNCATE ON {table}"
            " FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()"
        )
        op.execute(f"GRANT SELECT, INSERT ON {table} TO holdfast_service")
    for table, columns in MOVING.items():
        op.execute(
            f"CREATE TRIGGER {table}_stay BEFORE DELETE OR TRUNCATE ON {table}"
            " FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()"
        )
        op.execute(f"GRANT SELECT, INSERT, UPDATE ({columns}) ON {table} TO holdfast_service")
