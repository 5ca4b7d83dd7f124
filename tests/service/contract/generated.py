"""Settings of the tests whose requests are generated: as many as asked for, the same each time."""

from hypothesis import HealthCheck, settings


def seeded(n_examples: int) -> settings:
    """Return settings for ``n_examples``, without a time limit: a service answers them."""
    return settings(
        max_examples=n_examples,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
