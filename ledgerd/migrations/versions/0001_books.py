"""The first tables of the books, their guards, and what the service's role may do."""

from alembic import op

revision = "0001"
down_revision = None

TABLES = """
CREATE TABLE assets (
    code varchar PRIMARY KEY,
    decimals smallint NOT NULL,
    transfer_id bigint NOT NULL
);
CREATE TABLE accounts (
    id integer PRIMARY KEY,
    owner_kind smallint NOT NULL,
    owner_id bigint NOT NULL,
    purpose smallint NOT NULL,
    pair varchar NOT NULL,
    asset varchar NOT NULL REFERENCES assets (code),
    transfer_id bigint NOT NULL
);
CREATE UNIQUE INDEX accounts_name ON accounts (owner_kind, owner_id, purpose, pair, asset);
CREATE UNIQUE INDEX accounts_trader ON accounts (owner_id, purpose, pair, asset)
    WHERE owner_kind IN (1, 2, 5);
CREATE INDEX accounts_transfer ON accounts (transfer_id);
CREATE TABLE balances (
    account_id integer PRIMARY KEY,
    amount bigint NOT NULL,
    version bigint NOT NULL,
    minimum bigint NOT NULL,
    maximum bigint NOT NULL,
    CONSTRAINT balances_bounds CHECK (amount BETWEEN minimum AND maximum)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.02);
CREATE TABLE streams (
    id integer PRIMARY KEY,
    pair varchar NOT NULL UNIQUE,
    base varchar NOT NULL DEFAULT '',
    quote varchar NOT NULL DEFAULT '',
    cursor bigint NOT NULL DEFAULT 0,
    sequence bigint NOT NULL DEFAULT 0,
    transfer_id bigint NOT NULL,
    posted_ns bigint NOT NULL DEFAULT 0,
    head bytea NOT NULL DEFAULT ''
) WITH (fillfactor = 10);
CREATE TABLE transfers (
    id bigint PRIMARY KEY,
    time_ns bigint NOT NULL,
    sequence bigint NOT NULL,
    row_check bigint NOT NULL,
    kind smallint NOT NULL,
    phase smallint NOT NULL
);
CREATE TABLE postings (
    account_id integer NOT NULL,
    version bigint NOT NULL,
    transfer_id bigint NOT NULL,
    amount bigint NOT NULL,
    balance_after bigint NOT NULL,
    leg smallint NOT NULL,
    PRIMARY KEY (account_id, version),
    CONSTRAINT postings_amount CHECK (amount <> 0)
);
CREATE INDEX postings_transfer ON postings USING brin (transfer_id);
CREATE TABLE pendings (
    transfer_id bigint PRIMARY KEY,
    source_id integer NOT NULL,
    hold_id integer NOT NULL,
    target_id integer NOT NULL,
    amount bigint NOT NULL,
    expires_ns bigint NOT NULL
);
CREATE TABLE resolutions (
    pending_id bigint PRIMARY KEY,
    transfer_id bigint NOT NULL
);
CREATE INDEX resolutions_transfer ON resolutions (transfer_id);
CREATE TABLE requests (
    id uuid PRIMARY KEY,
    transfer_id bigint NOT NULL,
    digest bytea NOT NULL,
    actor varchar NOT NULL,
    note varchar NOT NULL
);
CREATE INDEX requests_transfer ON requests (transfer_id);
CREATE TABLE instructions (
    stream integer NOT NULL,
    number bigint NOT NULL,
    transfer_id bigint NOT NULL,
    kind smallint NOT NULL,
    owner_id bigint NOT NULL,
    asset smallint NOT NULL,
    amount bigint NOT NULL,
    PRIMARY KEY (stream, number)
);
CREATE INDEX instructions_transfer ON instructions (transfer_id);
CREATE TABLE seals (
    stream integer NOT NULL,
    cursor_to bigint NOT NULL,
    cursor_from bigint NOT NULL,
    sequence bigint NOT NULL,
    transfer_count bigint NOT NULL,
    posting_count bigint NOT NULL,
    posted_ns bigint NOT NULL,
    previous bytea NOT NULL,
    hash bytea NOT NULL,
    PRIMARY KEY (stream, cursor_to)
);
CREATE INDEX seals_posted ON seals (stream, posted_ns);
CREATE INDEX seals_sequence ON seals (stream, sequence);
CREATE TABLE closes (
    day varchar NOT NULL,
    asset varchar NOT NULL,
    purpose smallint NOT NULL,
    amount bigint NOT NULL,
    account_count bigint NOT NULL,
    transfer_id bigint NOT NULL,
    PRIMARY KEY (day, asset, purpose)
);
CREATE INDEX closes_transfer ON closes (transfer_id);
CREATE TABLE snapshots (
    id bigint PRIMARY KEY,
    asset varchar NOT NULL,
    time_ns bigint NOT NULL,
    root bytea NOT NULL,
    total bigint NOT NULL,
    leaf_count bigint NOT NULL,
    transfer_id bigint NOT NULL
);
CREATE INDEX snapshots_transfer ON snapshots (transfer_id);
CREATE TABLE leaves (
    snapshot bigint NOT NULL,
    position bigint NOT NULL,
    owner_id bigint NOT NULL,
    amount bigint NOT NULL,
    nonce bytea NOT NULL,
    PRIMARY KEY (snapshot, position)
);
INSERT INTO streams (id, pair, transfer_id) VALUES (0, '', -1);
"""

REFUSAL = """
CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'what is posted stays posted: %% on %% is refused', TG_OP, TG_TABLE_NAME
        USING ERRCODE = 'insufficient_privilege';
END
$$;
"""

POSTED = (
    "assets",
    "accounts",
    "transfers",
    "postings",
    "pendings",
    "resolutions",
    "requests",
    "instructions",
    "seals",
    "closes",
    "snapshots",
    "leaves",
)


def upgrade() -> None:
    """Make the tables; guard what is posted; grant the service no more than it needs."""
    for statement in (*TABLES.split(";\n"), REFUSAL):
        if statement.strip():
            op.get_bind().exec_driver_sql(statement)
    for table in POSTED:
        op.execute(
            f"CREATE TRIGGER {table}_stay BEFORE UPDATE OR DELETE OR TRUNCATE ON {table}"
            " FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()"
        )
        op.execute(f"GRANT SELECT, INSERT ON {table} TO holdfast_service")
    op.execute("GRANT SELECT, INSERT, UPDATE (amount, version) ON balances TO holdfast_service")
    op.execute(
        "GRANT SELECT, INSERT, UPDATE (cursor, sequence, posted_ns, head) ON streams"
        " TO holdfast_service"
    )
    op.execute("GRANT SELECT ON alembic_version TO holdfast_service")
