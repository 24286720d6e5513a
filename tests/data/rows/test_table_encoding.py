"""How a table is encoded, as it is kept beside the shards."""

import json

import pytest

from sparknet.config import decode, encode
from sparknet.data.rows.table_encoding import Category, Feature, TableEncoding
from sparknet.errors import ConfigError

ADULT = TableEncoding(
    features=(
        Feature(name="age"),
        Feature(name="work", words=("?", "Private", "State-gov"), width=3),
        Feature(name="vector", width=4),
    ),
    categories={"income": Category(words=("<=50K", ">50K")), "rank": Category(values=(2, 3))},
)


def test_width_is_that_of_all_features():
    assert ADULT.width == 8
    assert TableEncoding().width == 0


def test_it_comes_back_from_json():
    assert decode(TableEncoding, json.loads(json.dumps(encode(ADULT)))) == ADULT


def test_what_needs_no_words_needs_none_in_json():
    assert decode(TableEncoding, {"features": [{"name": "age"}]}) == TableEncoding(features=(Feature(name="age"),))


def test_a_damaged_one_is_refused_by_name():
    with pytest.raises(ConfigError, match=r"features\[0\].words is 'Private'; it must be a list"):
        decode(TableEncoding, {"features": [{"name": "work", "words": "Private"}]})


def test_classes_have_names():
    assert [category.names for category in ADULT.categories.values()] == [("<=50K", ">50K"), ("2", "3")]
