"""Let the index of postings by transfer tell the streams of one age from each other."""

from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Make the index anew; before, a look for one stream's postings passed over all streams'."""
    op.execute("DROP INDEX postings_transfer")
    op.execute(
        "CREATE INDEX postings_transfer ON postings USING brin (transfer_id int8_minmax_multi_ops)"
    )
