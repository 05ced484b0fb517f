from pathlib import Path

import pytest

from runs import metrics, run, tiny_config, weights


@pytest.mark.parametrize("name", ["paper", "default"])
def test_the_same_seed_gives_the_same_curve_and_another_seed_another(
    name: str, base_folder: Path, tmp_path: Path
) -> None:
    for out, seed in (("first", 4), ("again", 4), ("other", 5)):
        run(base_folder, tmp_path / out, tiny_config(name, seed=seed))
    first, again, other = (tmp_path / out for out in ("first", "again", "other"))
    assert metrics(again) == metrics(first)
    assert weights(again) == weights(first)
    assert [line["loss"] for line in metrics(other)] != [line["loss"] for line in metrics(first)]
    assert weights(other) != weights(first)
