"""CoCa's captions against those of open_clip 2.16.0 with transformers 4.26.1, token for token."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from goldens import COMMITTED

from beit3_bench.backbones.openclip.captions import check_architecture
from beit3_bench.backbones.openclip.coca import CoCaCaptioning, GroupedBeams, supports
from beit3_bench.backbones.word_cache import Cache
from beit3_bench.errors import BenchError

GOLDEN = json.loads((COMMITTED / "peers" / "coca" / "captions.json").read_text())
START, END, WORDS = 38, 39, 40
NAMES = {"seq_len": "max_length", "min_seq_len": "min_length"}
CASES = [(network["seed"], n) for network in GOLDEN["networks"] for n in range(len(network["cases"]))]


def coca(seed: int) -> torch.nn.Module:
    """open_clip's network with the weights that the golden file was made with (tests/golden/peers/coca/README.md)."""
    from open_clip.coca_model import CoCa

    module = CoCa(**GOLDEN["config"])
    rng = np.random.RandomState(seed)
    with torch.no_grad():
        for name, parameter in sorted(module.named_parameters()):
            noise = torch.from_numpy(rng.standard_normal(tuple(parameter.shape)).astype(np.float32)) * 0.2
            parameter.copy_(1 + noise if ".ln_" in name and name.endswith("weight") else noise)
        module.text_decoder.text_projection[:, [0, END]] *= 1.6
    return module.eval()


@pytest.fixture(scope="module")
def networks() -> dict[int, CoCaCaptioning]:
    return {
        network["seed"]: CoCaCaptioning(coca(network["seed"]), START, END, WORDS, GroupedBeams()).eval()
        for network in GOLDEN["networks"]
    }


def pixels() -> torch.Tensor:
    return torch.from_numpy(np.random.RandomState(9).standard_normal((6, 3, 32, 32)).astype(np.float32))


def golden(seed: int) -> dict:
    return next(network for network in GOLDEN["networks"] if network["seed"] == seed)


@pytest.mark.parametrize(("seed", "case"), CASES)
def test_captions_are_open_clip_s_token_for_token(networks, seed, case):
    wanted = golden(seed)["cases"][case]
    options = {NAMES.get(name, name): value for name, value in wanted["options"].items()}
    assert networks[seed].generate(pixels(), **{"max_length": 20, **options}) == wanted["tokens"]


def test_the_golden_captions_tell_the_rules_apart():
    """End tokens, captions that reach the limit, id 0 in the middle of a caption, and options that change captions."""
    for network in GOLDEN["networks"]:
        every = [tuple(ids) for case in network["cases"] for ids in case["tokens"]]
        assert {ids[-1] == END for ids in every} == {True, False}
        assert any(0 in ids[1:-2] for ids in every)
        assert len({json.dumps(case["tokens"]) for case in network["cases"]}) >= 8


def test_logits_behind_an_id_0_are_those_of_the_time(networks):
    """Newer versions of open_clip hide the word behind an id 0 from the words after it."""
    for seed, network in networks.items():
        with torch.inference_mode():
            logits = network(pixels()[:1], torch.tensor([[START, 5, 0, 7, 9]]))
        assert np.abs(logits[0, -1].numpy() - golden(seed)["logits"]).max() < 2e-4


def test_words_one_by_one_are_the_whole_text_of_open_clip_itself(networks):
    ids = torch.tensor([[START, 5, 3, 7, 9, 2], [START, 11, 31, 30, 4, 4]])
    for network in networks.values():
        with torch.inference_mode():
            images = pixels()[:2]
            whole = network.coca(images, ids, output_labels=False)["logits"]
            cache, looked = Cache(), network.looked(images)
            steps = [network.logits(ids[:, n : n + 1], looked, cache) for n in range(ids.shape[1])]
            assert (torch.cat(steps, dim=1) - whole).abs().max() < 1e-5
            assert (network(images, ids) - whole).abs().max() < 1e-5


def test_a_caption_does_not_depend_on_its_batch(networks):
    for network in networks.values():
        for groups in (3, 1):
            together = network.generate(pixels(), num_beam_groups=groups, max_length=20)
            assert [network.generate(image[None], num_beam_groups=groups, max_length=20)[0] for image in pixels()] == (
                together
            )
    assert network.generate(pixels()[:0], max_length=20) == []


def test_groups_without_a_penalty_of_diversity_are_one_search(networks):
    for network in networks.values():
        assert network.generate(pixels(), num_beams=6, num_beam_groups=3, max_length=20) == network.generate(
            pixels(), num_beams=2, num_beam_groups=1, max_length=20
        )
        tiny = network.generate(pixels(), diversity_penalty=1e-9, max_length=20)  # all groups are searched
        assert tiny == network.generate(pixels(), max_length=20)


def test_an_image_is_encoded_once(networks, monkeypatch):
    network = networks[1]
    shapes = []
    monkeypatch.setattr(
        network.coca.visual, "forward", lambda x, f=network.coca.visual.forward: shapes.append(x.shape) or f(x)
    )
    network.generate(pixels(), diversity_penalty=1.0, max_length=20)
    assert [shape[0] for shape in shapes] == [6]


def test_ids_without_a_piece_are_never_chosen():
    network = CoCaCaptioning(coca(2), START, END, END + 1, GroupedBeams(max_length=20)).eval()
    before = {word for ids in network.generate(pixels()) for word in ids}
    network.start, network.end, network.pieces = 5, 6, 7
    after = {word for ids in network.generate(pixels()) for word in ids}
    assert max(before) == END
    assert after <= set(range(7))


def test_another_number_of_beams_keeps_the_groups_that_divide_it():
    beams = GroupedBeams()
    assert (beams.words, beams.searched.beams) == ("6 beams in 3 groups", 2)
    assert beams.with_values(num_beams=9).words == "9 beams in 3 groups"
    assert beams.with_values(num_beams=4).words == "4 beams"
    assert beams.with_values(num_beams=1, max_length=None) == GroupedBeams(1, 1)
    assert beams.with_values(num_beams=4, num_beam_groups=2).words == "4 beams in 2 groups"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"num_beams": 0}, "num_beams is 0"),
        ({"num_beam_groups": 0}, "num_beam_groups is 0"),
        ({"num_beams": 6, "num_beam_groups": 4}, "4 groups do not divide evenly"),
        ({"max_length": 25}, "give 2 to 24"),
        ({"max_length": 1}, "give 2 to 24"),
        ({"max_length": 5}, "min_length is 5; give 0 to 4"),
        ({"min_length": -1}, "min_length is -1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0"),
        ({"diversity_penalty": -1.0}, "diversity_penalty is -1.0"),
    ],
)
def test_what_no_search_can_do_is_refused(networks, values, words):
    with pytest.raises(BenchError, match=words):
        networks[1].generate(pixels(), **{"max_length": 20, **values})


@pytest.mark.parametrize("name", ["coca_ViT-B-32", "coca_ViT-L-14", "coca_base"])
def test_the_architectures_of_open_clip_caption(name):
    import open_clip
    from open_clip.coca_model import CoCa

    config = open_clip.get_model_config(name)
    check_architecture(config, name, Path("weights.bin"))
    config.pop("custom_text")
    with torch.device("meta"):
        module = CoCaCaptioning(CoCa(**config), 49406, 49407, 49408, GroupedBeams())
    assert supports(module.coca)
    module.beams.check(module.positions)


def test_networks_of_other_blocks_are_not_taken_for_coca_s():
    from open_clip.coca_model import CoCa

    assert supports(coca(1))
    config = GOLDEN["config"]
    for change in ({"qk_norm": True}, {"embed_cls": False}, {"no_causal_mask": True}):
        assert not supports(CoCa(**{**config, "text_cfg": {**config["text_cfg"], **change}}))
