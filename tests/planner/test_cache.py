"""Compiled steps on disk: what they depend on, and files that are damaged."""

import dataclasses
import json

import pytest

from msfl_jax.planner import cache
from msfl_jax.planner.cache import Cache, key_of, read_text, write_text
from msfl_jax.planner.protocol import Compiled, TooLarge, as_json

FOUND = Compiled(1.5, 8.0, 16.0, 4.0, 28.0, 24.0, 24.0, 100.0, 2, 0, (8, 1, 1))


@pytest.fixture
def store(tmp_path):
    found = Cache(tmp_path / "plans")
    write_text(found.program("k"), "HloModule m")
    found.write("k", {"compiled": as_json(FOUND)})
    return found


def test_what_was_compiled_is_read_as_it_was(store):
    assert store.read("k") == FOUND
    assert read_text(store.program("k")) == "HloModule m"
    assert store.read("other") is None
    assert FOUND.peak == 128.0


def test_what_was_too_large_is_remembered_with_and_without_numbers(store):
    store.write("large", {"too_large": as_json(TooLarge(3e9, 2e9))})
    assert store.read("large") == TooLarge(3e9, 2e9)
    store.write("silent", {"too_large": as_json(TooLarge())})
    silent = store.read("silent")
    assert silent.needed != silent.needed


@pytest.mark.parametrize("damage", [b"", b"{", b'{"compiled": {}}', b"[]"])
def test_a_damaged_file_counts_as_missing(store, tmp_path, damage):
    (tmp_path / "plans" / "k.json").write_bytes(damage)
    assert store.read("k") is None


def test_a_damaged_or_missing_program_counts_as_missing(store):
    whole = store.program("k").read_bytes()
    store.program("k").write_bytes(whole[: len(whole) // 2])
    assert store.read("k") is None
    store.program("k").unlink()
    assert store.read("k") is None


def test_no_drafts_are_left(store, tmp_path):
    assert {file.name for file in (tmp_path / "plans").iterdir()} == {"k.json", "k.hlo.gz"}
    assert json.loads((tmp_path / "plans" / "k.json").read_text())["compiled"]["mesh"] == [8, 1, 1]


def test_the_key_goes_by_what_a_step_is_compiled_from(config, with_batch, monkeypatch):
    key = key_of(config, 40, "cpu", {})
    renamed = dataclasses.replace(config, name="other", zero_shot=dataclasses.replace(config.zero_shot, records=7))
    moved = dataclasses.replace(renamed, data=dataclasses.replace(renamed.data, directory="elsewhere"))
    logged = dataclasses.replace(moved, train=dataclasses.replace(moved.train, log_every=7))
    assert key_of(logged, 40, "cpu", {"HOME": "elsewhere"}) == key
    others = {
        key_of(with_batch(config, 64), 40, "cpu", {}),
        key_of(config, 41, "cpu", {}),
        key_of(config, 40, "v5e:4x4", {}),
        key_of(config, 40, "cpu", {"LIBTPU_INIT_ARGS": "--xla_x"}),
        key_of(dataclasses.replace(config, train=dataclasses.replace(config.train, microbatches=2)), 40, "cpu", {}),
        key_of(dataclasses.replace(config, model=dataclasses.replace(config.model, remat="dots")), 40, "cpu", {}),
    }
    monkeypatch.setattr(cache, "versions", lambda: {"jax": "0"})
    others.add(key_of(config, 40, "cpu", {}))
    assert len(others - {key}) == 7


def test_the_folder_is_the_users(tmp_path):
    assert cache.default_folder({"XDG_CACHE_HOME": str(tmp_path)}) == tmp_path / "msfl_jax" / "plans"
    assert cache.default_folder({}).parts[-3:] == (".cache", "msfl_jax", "plans")
