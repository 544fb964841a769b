"""How much the property tests try: the default round, and the long one.

`pytest tests/property --hypothesis-profile=long` tries fifty times as much. The profile is
registered here, so the folder has to be named on the command line.
"""

from hypothesis import settings

settings.register_profile("long", parent=settings.get_profile("holdfast"), max_examples=5_000)
