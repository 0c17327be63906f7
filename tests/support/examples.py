"""How many examples Hypothesis tries of each property.

By default few, and the same in every run: for a change under way, and for continuous integration. With
DMTHIN_HYPOTHESIS=deep (`scripts/test --all`) many, and others in each run; a failure is printed with what repeats it.
"""

import os

from hypothesis import HealthCheck, settings

_USUAL, _DEEP = "usual", "deep"


def register() -> None:
    """Make both profiles known, and choose the one of the environment. Raises InvalidArgument for another name."""
    usual = settings(
        max_examples=100,
        derandomize=True,
        deadline=None,
        print_blob=True,
        database=None,  # in a guest there is no place for one
        suppress_health_check=list(HealthCheck),
    )
    settings.register_profile(_USUAL, usual)
    settings.register_profile(_DEEP, usual, max_examples=2000, derandomize=False)
    settings.load_profile(_chosen())


def examples(usual: int, deep: int) -> settings:
    """Other numbers than the profiles', for a property whose examples take long."""
    return settings(max_examples=deep if is_deep() else usual)


def is_deep() -> bool:
    """Whether many examples are asked for."""
    return _chosen() == _DEEP


def _chosen() -> str:
    return os.environ.get("DMTHIN_HYPOTHESIS", _USUAL)
