"""The first tables of the risk service, and the guard of what is kept for ever."""

from alembic import op

revision = "0001"
down_revision = None

TABLES = """
CREATE TABLE risk.changes (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    time_ns bigint NOT NULL,
    actor varchar NOT NULL,
    note varchar NOT NULL,
    subject varchar NOT NULL,
    content text NOT NULL
);
CREATE TABLE risk.limit_history (
    version bigint NOT NULL,
    kind smallint NOT NULL,
    subject smallint NOT NULL,
    subject_name varchar NOT NULL,
    place smallint NOT NULL,
    place_name varchar NOT NULL,
    value bigint,
    change_id bigint NOT NULL REFERENCES risk.changes (id),
    PRIMARY KEY (version, kind, subject, subject_name, place, place_name)
);
CREATE TABLE risk.profiles (
    account bigint PRIMARY KEY,
    tier varchar NOT NULL,
    role smallint NOT NULL CHECK (role IN (1, 2))
);
CREATE TABLE risk.targets (
    account bigint NOT NULL,
    pair varchar NOT NULL,
    asset smallint NOT NULL CHECK (asset IN (1, 2)),
    units bigint NOT NULL CHECK (units > 0),
    PRIMARY KEY (account, pair, asset)
);
CREATE TABLE risk.kills (
    scope smallint NOT NULL CHECK (scope IN (1, 2, 3)),
    name varchar NOT NULL,
    killed boolean NOT NULL,
    change_id bigint NOT NULL REFERENCES risk.changes (id),
    confirmed varchar NOT NULL,
    PRIMARY KEY (scope, name)
);
CREATE TABLE risk.settings (
    pair varchar NOT NULL,
    account bigint NOT NULL,
    largest_order_lots bigint NOT NULL,
    largest_notional_units bigint NOT NULL,
    most_open_orders bigint NOT NULL,
    PRIMARY KEY (pair, account)
);
CREATE TABLE risk.withdrawals (
    id uuid PRIMARY KEY,
    account bigint NOT NULL,
    asset varchar NOT NULL,
    amount_units bigint NOT NULL CHECK (amount_units > 0),
    time_ns bigint NOT NULL,
    released boolean NOT NULL
);
CREATE INDEX withdrawals_recent ON risk.withdrawals (asset, time_ns);
CREATE TABLE risk.followed (
    pair varchar PRIMARY KEY,
    cursor bigint NOT NULL,
    state bytea NOT NULL
);
"""
GUARD = """
CREATE FUNCTION risk.refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'rows of risk.% are kept as they are', TG_TABLE_NAME;
END $$;
"""
KEPT = ("changes", "limit_history")


def upgrade() -> None:
    """Make everything."""
    op.execute(TABLES)
    op.execute(GUARD)
    for table in KEPT:
        op.execute(
            f"CREATE TRIGGER kept BEFORE UPDATE OR DELETE OR TRUNCATE ON risk.{table}"
            " FOR EACH STATEMENT EXECUTE FUNCTION risk.refuse_change()"
        )


def downgrade() -> None:
    """Refuse: what was changed when is not thrown away."""
    raise NotImplementedError("the first tables of the risk service are not removed")
