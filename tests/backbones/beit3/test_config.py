"""Configurations that make sense pass, the others are told what is wrong with them."""

from __future__ import annotations

import json

import pytest

from beit3_bench.backbones.beit3.config import PRESETS, BEiT3Config
from beit3_bench.errors import BenchError


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"embed_dim": 50, "num_heads": 4}, "embed_dim 50 is not a multiple of num_heads 4"),
        ({"image_size": 225}, "image_size 225 is not a multiple of patch_size 16; the nearest that is: 224"),
        ({"image_size": 4}, "nearest that is: 16"),
        ({"vl_layers": 13}, "vl_layers 13 is not between 0 and depth 12"),
        ({"vl_layers": -1}, "vl_layers -1"),
        ({"depth": 0}, "depth is 0; give a whole number"),
        ({"num_heads": 0}, "num_heads is 0"),
        ({"patch_size": 0}, "patch_size is 0"),
        ({"image_size": 224.0}, "image_size is 224.0"),
        ({"vocab_size": "64010"}, "vocab_size is '64010'"),
        ({"ffn_dim": True}, "ffn_dim is True"),
        ({"vocab_size": 100, "num_pieces": 101}, "num_pieces 101 is not between 1 and vocab_size 100"),
        ({"vocab_size": 100, "num_pieces": 0}, "num_pieces 0"),
        ({"vocab_size": 100, "mask_token_id": 100}, "mask_token_id 100 is not below vocab_size 100"),
        ({"sep_token_id": -1}, "sep_token_id -1"),
        ({"drop_path_rate": 1.0}, "drop_path_rate 1.0"),
        ({"drop_path_rate": -0.1}, "drop_path_rate -0.1"),
    ],
)
def test_contradictions_are_refused_in_one_line(fields, message):
    with pytest.raises(BenchError) as caught:
        BEiT3Config(**fields)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_released_vocabulary_has_64002_pieces_and_mask_64001():
    config = BEiT3Config()
    assert (config.vocab_size, config.num_pieces, config.mask_token_id) == (64010, 64002, 64001)
    assert (config.cls_token_id, config.pad_token_id, config.sep_token_id, config.unk_token_id) == (0, 1, 2, 3)


def test_another_vocabulary_has_a_piece_for_every_id():
    config = BEiT3Config(vocab_size=211, mask_token_id=202)
    assert (config.num_pieces, config.mask_token_id) == (211, 202)
    assert BEiT3Config(vocab_size=211).mask_token_id == 210
    assert BEiT3Config(vocab_size=211, num_pieces=203).mask_token_id == 202


def test_replacing_the_vocabulary_takes_its_defaults_along_and_leaves_choices_alone():
    assert BEiT3Config().replace(vocab_size=500) == BEiT3Config(vocab_size=500)
    assert BEiT3Config(vocab_size=500).replace(vocab_size=64010) == BEiT3Config()
    chosen = BEiT3Config(vocab_size=300, num_pieces=290, mask_token_id=280).replace(vocab_size=400)
    assert (chosen.vocab_size, chosen.num_pieces, chosen.mask_token_id) == (400, 290, 280)
    assert BEiT3Config(vocab_size=300).replace(vocab_size=400, num_pieces=390).mask_token_id == 389
    assert BEiT3Config(vocab_size=300, mask_token_id=4).replace(image_size=384).mask_token_id == 4


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_survive_a_dictionary_and_json(preset):
    config = BEiT3Config.preset(preset)
    assert BEiT3Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert config.num_patches == config.grid**2
    assert config.head_dim * config.num_heads == config.embed_dim


@pytest.mark.parametrize(
    ("preset", "shape"),
    [
        ("base", (768, 12, 3072, 12, 16, False, 0)),
        ("large", (1024, 16, 4096, 24, 16, False, 0)),
        ("giant", (1408, 16, 6144, 40, 14, True, 3)),
    ],
)
def test_presets_are_those_of_paper_and_release(preset, shape):
    c = BEiT3Config.preset(preset, image_size=448)
    assert (c.embed_dim, c.num_heads, c.ffn_dim, c.depth, c.patch_size, c.shared_attention, c.vl_layers) == shape
    assert c.image_size == 448
    assert c.vocab_size == 64010


def test_unknown_presets_and_fields_are_refused():
    with pytest.raises(BenchError, match="no preset 'larg'; did you mean 'large'"):
        BEiT3Config.preset("larg")
    with pytest.raises(BenchError, match="no preset 'x'; known: tiny, base, large, giant"):
        BEiT3Config.preset("x")
    with pytest.raises(BenchError, match="no field 'width'; known: image_size"):
        BEiT3Config.preset("base", width=3)
    with pytest.raises(BenchError, match=r"a\.pth: its configuration: no field 'zoom'"):
        BEiT3Config.from_dict({"zoom": 1}, "a.pth: its configuration")
