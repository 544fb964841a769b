"""An index of what no engine posted, so that the fees an engine took are known in one step."""

from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Add the index; postings of engines are not in it and cost nothing."""
    op.execute(
        "CREATE INDEX postings_own ON postings (account_id) INCLUDE (amount)"
        " WHERE transfer_id < 17592186044416"
    )
