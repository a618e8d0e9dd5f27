"""For all tests: `pytest --hypothesis-profile=long` tries 20 times the cases of a normal run."""

from hypothesis import settings

settings.register_profile("long", max_examples=20 * settings.get_profile("default").max_examples)
