"""What the role may do that the service works as, where there is one beside the owner."""

from alembic import op

revision = "0002"
down_revision = "0001"

SERVICE = "holdfast_risk"
GRANTS = f"""
DO $$ BEGIN
    IF current_user <> '{SERVICE}'
       AND EXISTS (SELECT 1 FROM pg_roles WHERE rolname = '{SERVICE}') THEN
        GRANT USAGE ON SCHEMA risk TO {SERVICE};
        GRANT SELECT ON risk.alembic_version TO {SERVICE};
        GRANT SELECT, INSERT ON risk.changes, risk.limit_history TO {SERVICE};
        GRANT SELECT, INSERT, UPDATE ON risk.profiles, risk.kills, risk.settings, risk.followed
            TO {SERVICE};
        GRANT SELECT, INSERT, UPDATE, DELETE ON risk.targets TO {SERVICE};
        GRANT SELECT, INSERT, UPDATE (released) ON risk.withdrawals TO {SERVICE};
    END IF;
END $$;
"""


def upgrade() -> None:
    """Let the service do its work, and nothing to what is kept for ever."""
    op.execute(GRANTS)
    op.execute(
        "CREATE TRIGGER kept BEFORE DELETE OR TRUNCATE ON risk.withdrawals"
        " FOR EACH STATEMENT EXECUTE FUNCTION risk.refuse_change()"
    )


def downgrade() -> None:
    """Refuse: rights are not widened again."""
    raise NotImplementedError("the rights of the risk service are not widened again")
