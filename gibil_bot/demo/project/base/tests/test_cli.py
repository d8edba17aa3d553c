from __future__ import annotations

import contextlib
import io
import unittest

from sexagesimal.__main__ import main


def said(*arguments: str) -> tuple[int, str]:
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        status = main(list(arguments))
    return status, output.getvalue()


class CommandLine(unittest.TestCase):
    def test_a_number_is_shown_in_both_ways(self) -> None:
        status, output = said("4000")
        self.assertEqual((status, output.splitlines()[0]), (0, "4000 = 1,6,40"))

    def test_places_are_read(self) -> None:
        self.assertEqual(said("--read", "1,6,40"), (0, "4000\n"))

    def test_a_wrong_number_is_said_in_one_line(self) -> None:
        status, output = said("--read", "1,66")
        self.assertEqual((status, output), (2, "sexagesimal: 66 does not fit into one place\n"))


if __name__ == "__main__":
    unittest.main()
