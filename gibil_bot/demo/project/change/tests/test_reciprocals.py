from __future__ import annotations

import unittest
from fractions import Fraction

from sexagesimal.reciprocals import is_regular, reciprocal

# The standard table of the Old Babylonian schools, from 2 to 16.
TABLE = {2: [30], 3: [20], 4: [15], 5: [12], 6: [10], 8: [7, 30], 9: [6, 40], 10: [6], 12: [5], 15: [4], 16: [3, 45]}


class Reciprocals(unittest.TestCase):
    def test_the_table_of_the_schools(self) -> None:
        self.assertEqual({number: reciprocal(number) for number in TABLE}, TABLE)

    def test_seven_has_none(self) -> None:
        for number in (7, 11, 13, 14, 49):
            with self.subTest(number), self.assertRaises(ValueError):
                reciprocal(number)

    def test_a_number_times_its_reciprocal_is_one(self) -> None:
        for number in range(2, 20_000):
            if is_regular(number):
                parts = (Fraction(place, 60 ** (n + 1)) for n, place in enumerate(reciprocal(number)))
                self.assertEqual(number * sum(parts), 1)


if __name__ == "__main__":
    unittest.main()
