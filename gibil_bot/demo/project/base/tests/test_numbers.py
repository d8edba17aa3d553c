from __future__ import annotations

import unittest

from sexagesimal.numbers import places, read, value, write


class Numbers(unittest.TestCase):
    def test_small_numbers_have_one_place(self) -> None:
        self.assertEqual([places(number) for number in (0, 1, 59)], [[0], [1], [59]])

    def test_sixty_begins_a_new_place(self) -> None:
        self.assertEqual((places(60), places(3600)), ([1, 0], [1, 0, 0]))

    def test_every_number_of_three_places_comes_back(self) -> None:
        for number in range(60**3):
            self.assertEqual(value(places(number)), number)

    def test_numbers_are_written_with_commas(self) -> None:
        self.assertEqual(write(4000), "1,6,40")

    def test_what_is_written_can_be_read(self) -> None:
        for number in range(0, 60**4, 97):
            self.assertEqual(read(write(number)), number)

    def test_a_place_holds_less_than_sixty(self) -> None:
        for wrong in ("60", "1,66", "-1", "", "1,,2", "one"):
            with self.subTest(wrong), self.assertRaises(ValueError):
                read(wrong)

    def test_there_is_nothing_below_zero(self) -> None:
        with self.assertRaises(ValueError):
            places(-1)


if __name__ == "__main__":
    unittest.main()
