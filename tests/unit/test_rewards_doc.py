"""docs/rewards.md says what there is."""

import re

from foveal.rewards import reward_names
from tests.conftest import REPOSITORY

PAGE = (REPOSITORY / "docs" / "rewards.md").read_text()
ROW = re.compile(r"^\| `(?P<name>\w+).*?` \|(?P<measures>.*)\|(?P<range>.*)\|.*\|(?P<gaming>.*)\|$")


def test_the_table_names_each_registered_reward_once_with_its_cells_filled():
    rows = [ROW.match(line) for line in PAGE.splitlines() if line.startswith("| `")]
    assert None not in rows
    assert sorted(row["name"] for row in rows if row) == reward_names()
    empty = [row["name"] for row in rows if row and not all(map(str.strip, row.groups()))]
    assert empty == []
