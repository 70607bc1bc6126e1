import pytest

import ave_clip.data


def test_every_public_name_can_be_used():
    for name in ave_clip.data.__all__:
        assert getattr(ave_clip.data, name) is not None
    assert set(ave_clip.data.__all__) <= set(dir(ave_clip.data))


def test_another_name_is_refused():
    with pytest.raises(AttributeError, match="no attribute 'load_everything'"):
        getattr(ave_clip.data, "load_" + "everything")
