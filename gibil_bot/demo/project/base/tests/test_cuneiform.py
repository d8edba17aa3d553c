from __future__ import annotations

import unittest

from sexagesimal.cuneiform import GAP, ONE, TEN, count, wedges


class Cuneiform(unittest.TestCase):
    def test_ones_are_upright_and_tens_are_corners(self) -> None:
        self.assertEqual(wedges(23), TEN * 2 + ONE * 3)

    def test_an_empty_place_is_a_gap(self) -> None:
        self.assertEqual(wedges(3605), f"{ONE}  {GAP}  {ONE * 5}")

    def test_every_number_of_two_places_comes_back(self) -> None:
        for number in range(60**2):
            self.assertEqual(count(wedges(number)), number)

    def test_other_signs_are_refused(self) -> None:
        for wrong in ("", "12", ONE + TEN, GAP + ONE):
            with self.subTest(wrong), self.assertRaises(ValueError):
                count(wrong)


if __name__ == "__main__":
    unittest.main()
