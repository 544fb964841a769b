"""How much the property tests try: the default round, and `--hypothesis-profile=long`."""

from hypothesis import HealthCheck, settings

# A stream is drawn while its twin runs, so an example is large by nature.
settings.register_profile(
    "long",
    parent=settings.get_profile("holdfast"),
    max_examples=5_000,
    suppress_health_check=[
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
        HealthCheck.large_base_example,
    ],
)
