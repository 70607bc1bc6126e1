import pytest

from ave_clip.data.annotations import parse_categories
from ave_clip.data.categories import AVE_CATEGORIES, background_index, category_index, label_names


def test_the_real_category_list_is_ours(shared_ave):
    assert parse_categories((shared_ave / "categories.txt").read_bytes()) == AVE_CATEGORIES


def test_background_follows_the_last_category():
    names = label_names(["Bell", "Bark"])
    assert names == ["Bell", "Bark", "background"]
    assert names[background_index(["Bell", "Bark"])] == "background"
    assert background_index(AVE_CATEGORIES) == 28


def test_an_unknown_category_is_refused_with_the_closest_one():
    assert category_index("Bark", AVE_CATEGORIES) == 2
    with pytest.raises(ValueError, match=r"'Church bel', which is not in the list\. Did you mean 'Church bell'"):
        category_index("Church bel", AVE_CATEGORIES)


def test_an_unknown_category_like_no_other_is_refused_with_the_list():
    with pytest.raises(ValueError, match=r"The 2 categories are \['Bell', 'Bark'\]"):
        category_index("xyz", ["Bell", "Bark"])
