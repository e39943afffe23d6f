"""Configurations: overrides, the eight combinations of table 5, and refusals in one line."""

import dataclasses
import itertools

import pytest

from input_pipeline.errors import UserError
from msfl_jax.config import config_hash, from_config_dict, to_dict
from msfl_jax.config_files import load_config, shipped_configs


def weights(config):
    return tuple(getattr(config.objective, f"lambda_{name}") for name in ("global", "local", "instance", "modality"))


@pytest.mark.parametrize("name", ["demo", "mimic_vit_s16", "mimic_vit_b16", "mimic_vit_l16"])
def test_every_shipped_configuration_loads_and_survives_json(name):
    config = load_config(name)
    assert name in shipped_configs()
    assert from_config_dict(to_dict(config)) == config


def test_the_argument_selects_each_of_the_eight_combinations_and_the_window_of_the_local_loss():
    """Nothing but the weights changes, and without local alignment the encoder is the paper's: full attention in every block."""
    seen = set()
    everything = load_config("demo")
    assert (everything.regions.layer, everything.regions.window_radius) == (1, 1)
    for choice in itertools.product([False, True], repeat=3):
        words = ["global", *(w for w, on in zip(("local", "instance", "modality"), choice, strict=True) if on)]
        config = load_config("demo:" + ",".join(words))
        assert weights(config) == (1.0, *map(float, choice))
        seen.add(weights(config))
        names = ("lambda_local", "lambda_instance", "lambda_modality")
        objective = dataclasses.replace(everything.objective, **dict(zip(names, map(float, choice), strict=True)))
        regions = everything.regions if choice[0] else dataclasses.replace(everything.regions, layer=0, window_radius=0)
        assert config == dataclasses.replace(everything, objective=objective, regions=regions)
    assert len(seen) == 8


def test_short_and_permuted_may_be_added():
    config = load_config("demo:global,local,permuted,short")
    assert (config.train.steps, config.data.permute_reports) == (500, True)
    assert weights(config) == (1.0, 1.0, 0.0, 0.0)


def test_a_path_with_an_argument_works_like_the_name():
    path = shipped_configs()["demo"]
    assert load_config(f"{path}:global") == load_config("demo:global")


def test_overrides_reach_nested_keys_and_tuples():
    config = load_config("demo", ["--config.train.steps=107", "--config.objective.instance_matching.ramp=(0.1, 0.2)"])
    assert config.train.steps == 107
    assert config.objective.instance_matching.ramp == (0.1, 0.2)


@pytest.mark.parametrize(
    "recipe",
    [
        ["scale=(1.0, 1.0)", "rotation=20.0", "zoom=(0.8, 1.2)", "flip=True"],
        ["scale=(0.2, 1.0)", "aspect=(0.75, 1.3333)", "placement=anywhere", "flip=True"],
        ["scale=(0.7656, 0.7656)", "placement=anywhere"],
    ],
    ids=["MaCo", "MRM", "GLoRIA"],
)
def test_augmentation_of_the_siblings_is_a_few_overrides(recipe):
    data = load_config("mimic_vit_b16", [f"--config.data.{item}" for item in recipe]).data
    for item in recipe:
        name, value = item.split("=")
        assert str(getattr(data, name)) == value
    plain = load_config("mimic_vit_b16").data
    assert (plain.rotation, plain.zoom, plain.aspect, plain.flip) == (0.0, (1.0, 1.0), (1.0, 1.0), False)


def test_how_the_same_numbers_are_computed_does_not_make_another_experiment():
    """The hashes of runs begun before these keys existed."""
    for name, expected in (("demo", "fa51e783bb421479"), ("mimic_vit_b16:global,local", "70a6a5410a256664")):
        values = to_dict(load_config(name))
        del values["train"]["microbatches"], values["model"]["attention"], values["mesh"]["shard_moments"]
        del values["text"]["length_buckets"], values["objective"]["global_alignment"]["exchange"]
        del values["objective"]["local_alignment"]["exchange"], values["objective"]["local_alignment"]["kernel"]
        assert config_hash(from_config_dict(values)) == expected
    words = (
        "train.microbatches=4",
        "objective.local_alignment.exchange=ring",
        "objective.local_alignment.kernel=pallas",
        "model.attention=cudnn",
        "model.remat=dots",
        "objective.global_alignment.exchange=ring",
        "text.length_buckets=20:0.5",
        "mesh.shard_moments=True",
    )
    assert config_hash(load_config("demo", [f"--config.{word}" for word in words])) == "fa51e783bb421479"
    negatives = "--config.objective.local_alignment.negatives=group(8)"
    assert config_hash(load_config("demo", [negatives])) != "fa51e783bb421479"


def test_a_configuration_without_the_later_keys_is_refused_by_name():
    values = to_dict(load_config("demo"))
    del values["data"]["rotation"]
    with pytest.raises(UserError, match=r"'data.rotation' is missing"):
        from_config_dict(values)


@pytest.mark.parametrize(
    ("name", "override", "words"),
    [
        ("demoo", None, ["demoo", "did you mean 'demo'"]),
        ("demo:globall", None, ["globall", "did you mean 'global'"]),
        ("demo:shrot", None, ["shrot", "did you mean 'short'", "permuted"]),
        ("mimic_vit_b16:short", None, ["short", "expected some of global, local, instance, modality"]),
        ("demo:local", None, ["lacks 'global'"]),
        ("demo", "--config.optimiser.b1=0.9", ["optimiser.b1", "did you mean 'optimizer.b1'"]),
        ("demo", "--config.optimizer.peak_rat=1", ["peak_rat", "did you mean 'optimizer.peak_rate'"]),
        ("demo", "--config.train.steps=many", ["train.steps", "many", "int"]),
        ("demo", "--config.train.steps=1.5", ["train.steps", "int"]),
        ("demo", "--config.train.steps=0", ["train.steps", "at least 1"]),
        ("demo", "--config.image.passes=twice", ["image.passes", "two, shared"]),
        ("demo", "--config.image.mask_ratio=1.5", ["image.mask_ratio", "between 0 and 1"]),
        ("demo", "--config.model.vision.image_size=65", ["image_size", "multiple of patch_size"]),
        ("demo", "--config.data.permute_reports=maybe", ["permute_reports", "bool"]),
        ("demo", "--config.train=3", ["'train' is a section"]),
        ("demo", "--config.objective.local_alignment.negatives=grp(4)", ["grp(4)", "global, or group(N)"]),
        ("demo", "--config.objective.local_alignment.negatives=group(0)", ["group(0)", "global, or group(N)"]),
        ("demo", "--config.objective.local_alignment.negatives=group(5)", ["group(5)", "divide data.batch_size, 32"]),
        ("demo", "--config.train.microbatches=0", ["train.microbatches", "at least 1"]),
        ("demo", "--config.model.attention=cudn", ["model.attention", "'cudn'", "cudnn"]),
        ("demo", "--config.text.length_buckets=20", ["text.length_buckets", "TOKENS:SHARE,..."]),
        ("demo", "--config.text.length_buckets=20:1.5", ["text.length_buckets", "TOKENS:SHARE,..."]),
        ("demo", "--config.text.length_buckets=20:0.5,", ["text.length_buckets", "TOKENS:SHARE,..."]),
        ("demo", "--config.text.length_buckets=20:0.2,10:0.2", ["text.length_buckets", "in rising order"]),
        ("demo", "--config.text.length_buckets=900:0.5", ["text.length_buckets", "lengths from 3 to"]),
        ("demo", "--config.text.length_buckets=10:0.5,20:0.5", ["text.length_buckets", "add up to less than 1"]),
        ("demo", "--config.model.vision.patch_size=0", ["patch_size", "at least 1"]),
        ("demo", "--config.model.text.heads=0", ["text.heads", "at least 1"]),
        ("demo", "--config.optimizer.peak_rate=nan", ["peak_rate", "at least 0"]),
        ("demo", "--config.optimizer.clip_norm=-1.0", ["clip_norm", "at least"]),
        ("demo", "--config.objective.lambda_local=-1.0", ["lambda_local", "at least 0"]),
        ("demo", "--config.objective.instance_matching.ramp=(0.9, 0.1)", ["ramp", "the smaller one first"]),
        ("demo", "--config.data.scale=(2.0, 1.0)", ["data.scale", "from 0.001 to 1"]),
        ("demo", "--config.data.shift=5.0", ["data.shift", "from 0 to 0.5"]),
        ("demo", "--config.data.rotation=200.0", ["data.rotation", "from 0 to 180"]),
        ("demo", "--config.data.rotation=-1.0", ["data.rotation", "from 0 to 180"]),
        ("demo", "--config.data.zoom=(1.2, 0.8)", ["data.zoom", "from 0.1 to 10, the smaller one first"]),
        ("demo", "--config.data.zoom=(0.0, 1.0)", ["data.zoom", "from 0.1 to 10"]),
        ("demo", "--config.data.aspect=(0.75, 40.0)", ["data.aspect", "from 0.1 to 10"]),
        ("demo", "--config.data.placement=left", ["data.placement", "centre, anywhere"]),
        ("demo", "--config.data.flip=2", ["data.flip", "bool"]),
        ("demo", "--config.train.keep_checkpoints=0", ["keep_checkpoints", "at least 1"]),
        ("demo", "--config.train.steps=50", ["warmup_steps", "fewer than train.steps, 50"]),
        ("demo", "--config.mesh.fsdp=0", ["mesh", "1 or more"]),
        ("demo", "--config.grounding.shifts=3", ["grounding.shifts", "divides patch_size 8"]),
        ("demo", "--config.image.target_scale=3", ["target_scale", "1 or 2"]),
        ("demo", "--confg.seed=3", ["--confg.seed=3", "--config.SECTION.KEY=VALUE"]),
    ],
)
def test_a_wrong_key_type_or_value_is_one_line_with_the_way_out(name, override, words):
    with pytest.raises(UserError) as error:
        load_config(name, [override] if override else [])
    message = str(error.value)
    assert "\n" not in message
    assert error.value.exit_code == 2
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("def get_config(arg=''):\n  return nothing", "nothing"),
        ("def get_config(arg='')\n", "line 1"),
        ("import no_such_module\n", "no_such_module"),
        ("def get_config(arg=''):\n  raise KeyError('lost')", "lost"),
        ("config = 3\n", "get_config"),
    ],
)
def test_a_faulty_file_is_one_line(tmp_path, text, word):
    file = tmp_path / "mine.py"
    file.write_text(text)
    for overrides in ([], ["--config.seed=1"]):
        with pytest.raises(UserError, match=word) as error:
            load_config(str(file), overrides)
        assert "\n" not in str(error.value)
        assert "mine.py" in str(error.value)


def test_of_several_overrides_the_wrong_one_is_named():
    with pytest.raises(UserError, match=r"'train.steps' is 'many'"):
        load_config("demo", ["--config.seed=0", "--config.data.batch_size=8", "--config.train.steps=many"])


def test_the_hash_ignores_paths_and_sees_everything_else():
    plain = config_hash(load_config("demo"))
    assert plain == config_hash(load_config("demo", ["--config.data.directory=/elsewhere", "--config.data.workers=2"]))
    assert plain != config_hash(load_config("demo", ["--config.seed=1"]))
