"""Indexes of what was set aside: by the account that holds it, and what ends by itself."""

from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Add the indexes; settlement resolves what is pending and writes none of it."""
    op.execute("CREATE INDEX pendings_hold ON pendings (hold_id)")
    op.execute("CREATE INDEX pendings_expiring ON pendings (expires_ns) WHERE expires_ns > 0")
