"""The exercise of lesson 00."""

from .exercises import Exercise, check

__all__ = ["EXERCISES", "check"]


def count_subsets(sensors):
    return 2 ** len(sensors) - 1


EXERCISES = {
    "count_subsets": Exercise(
        count_subsets,
        [("R",), ("RD",), ("RDE",), ("RDEL",), ("RDELTNPA",)],
        {
            "This also counts the empty set, a machine that has no sensor at all.": lambda s: 2 ** len(s),
            "This counts single sensors and pairs; three and more may be left, too.": lambda s: (
                len(s) + len(s) * (len(s) - 1) // 2
            ),
            "This counts the cases in which exactly one sensor is missing.": lambda s: len(s),
        },
    ),
}
