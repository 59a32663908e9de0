import pytest

from nonlocal_jax import data
from nonlocal_jax.data.classes import DATASETS
from nonlocal_jax.errors import InputError

NUM_CLASSES = {"cityscapes": 19, "ade20k": 150, "voc12aug": 21, "digits_flag": 3}


@pytest.mark.parametrize("name", DATASETS)
def test_tables_are_whole(name):
    info = data.get_info(name)
    assert info.name == name
    assert info.num_classes == len(info.classes) == len(info.palette) == NUM_CLASSES[name]
    assert all(info.classes)
    assert len(set(info.classes)) == len(info.classes)
    assert all(len(color) == 3 and 0 <= min(color) <= max(color) <= 255 for color in info.palette)


def test_classes_are_in_the_order_of_the_labels():
    assert data.get_info("cityscapes").classes[::18] == ("road", "bicycle")
    assert data.get_info("cityscapes").palette[13] == (0, 0, 142)  # car
    assert data.get_info("voc12aug").classes[:2] == ("background", "aeroplane")
    assert data.get_info("ade20k").classes[0] == "wall"


def test_voc_colors_follow_their_formula():
    def color(index):
        """The bits of the class index, dealt to the channels from the top."""
        channels = [0, 0, 0]
        for bit in range(8):
            channels[bit % 3] |= (index >> bit & 1) << 7 - bit // 3
        return tuple(channels)

    assert data.get_info("voc12aug").palette == tuple(color(i) for i in range(21))


def test_configs_have_as_many_classes_as_their_data():
    from configs import segmentation

    for name in segmentation.NAMES:
        config = segmentation.get_config(name)
        assert config.model.num_classes == data.get_info(config.data.name).num_classes


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(InputError, match="did you mean 'cityscapes'"):
        data.get_info("cityscape")
    with pytest.raises(InputError, match=r"known are cityscapes, .*digits_flag"):
        data.get_info("xyz")
