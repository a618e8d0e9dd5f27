"""What the tests with made-up input share: how many cases, and what arbitrary values are."""

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

NORMAL = 100  # max_examples of hypothesis' default profile; "long" has 20 times as many


def cases(number: int):
    """Return the decorator for `number` cases of a normal run, 20 times as many of a long one."""
    return settings(
        max_examples=max(1, number * settings().max_examples // NORMAL),
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
    )


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 70),
    st.integers(),
    st.sampled_from([10**400, -(10**400), 2**64, 0.0, -0.0, 1e-320, 0.5]),
    st.floats(),
    st.text(max_size=12),
)
# Anything that JSON or YAML can say.
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=5,
)
