"""The token cache: built once, whole or absent, the same bytes each time; batches a pure function."""

import fcntl
import hashlib
import json
import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import zo.data.dataset
from zo.data.dataset import DatasetSpec, TokenCache, build_cache, open_cache
from zo.errors import UserError
from zo.files import try_hold


@pytest.fixture
def corpus(tmp_path):
    """Return a jsonl file of 60 short documents."""
    path = tmp_path / "corpus.jsonl"
    rows = [{"text": f"document {i}: {'to be or not to be, ' * (i % 7 + 1)}that is it"} for i in range(60)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def shakespeare(tmp_path_factory):
    """Return the default cache, built once for this module."""
    return build_cache(DatasetSpec(), tmp_path_factory.mktemp("cache"), progress=False)


def counting_cache(folder, train, validation=100):
    """Return a cache whose tokens are 0, 1, 2 ... so that a token says where it came from."""
    for split, tokens in (("train", train), ("validation", validation)):
        np.arange(tokens, dtype="uint32").tofile(folder / f"{split}.bin")
    return TokenCache(folder, {"vocab_size": train, "end_of_text": 0, "dtype": "uint32"})


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.name != "timings.json"}


def test_the_default_cache_opens_100_times_faster_than_it_builds(shakespeare):
    timings = json.loads((shakespeare / "timings.json").read_text())
    assert timings["build_over_open"] >= 100
    assert timings["build_over_open"] == timings["build_seconds"] / timings["open_seconds"]


def test_meta_tells_the_held_out_plays_counts_hashes_and_versions(shakespeare):
    cache = open_cache(shakespeare)
    assert cache.meta["held_out"]["names"] == ["Richard III", "Antony and Cleopatra"]
    assert cache.meta["documents"] == {"train": 36, "validation": 2}
    assert cache.meta["tokens"] == {"train": len(cache.train), "validation": len(cache.validation)}
    for split in ("train", "validation"):
        file = (shakespeare / f"{split}.bin").read_bytes()
        assert cache.meta["sha256"][split] == hashlib.sha256(file).hexdigest()
    assert (cache.meta["dtype"], cache.vocab_size, cache.meta["spec"]["vocab_size"]) == ("uint16", 512, 512)
    assert set(cache.meta["versions"]) == {"datasets", "tokenizers", "transformers", "numpy"}


def test_documents_are_joined_by_end_of_text_and_decode_to_the_corpus(shakespeare):
    cache = open_cache(shakespeare)
    tokens = np.array(cache.validation)
    ends = np.flatnonzero(tokens == cache.end_of_text)
    assert len(ends) == cache.meta["documents"]["validation"]
    first = cache.tokenizer().decode(tokens[: ends[0]])
    assert first.startswith("Richard III\n\nACT I\n\nSCENE I. London. A street.\n")
    assert int(cache.train.max()) < cache.vocab_size


def test_opening_a_cache_pulls_in_no_heavy_library(shakespeare):
    code = (
        "import sys; from zo.data.dataset import *; open_cache(sys.argv[1]); DatasetSpec().folder_name();"
        "print({'torch', 'datasets', 'transformers', 'pyarrow', 'tokenizers'} & set(sys.modules))"
    )
    out = subprocess.check_output([sys.executable, "-c", code, str(shakespeare)], text=True)
    assert out.strip() == "set()"


def test_a_cache_is_the_same_bytes_on_every_build(corpus, tmp_path):
    spec = DatasetSpec(str(corpus), vocab_size=300)
    first, second = (build_cache(spec, tmp_path / root, progress=False) for root in "ab")
    assert contents(first) == contents(second)
    assert set(contents(first)) >= {"train.bin", "validation.bin", "meta.json", "tokenizer.json"}


def test_the_vocabulary_is_learnt_from_training_documents_alone(corpus, tmp_path, monkeypatch):
    import zo.data.dataset

    spec, seen, real = DatasetSpec(str(corpus)), [], zo.data.dataset.make_tokenizer
    monkeypatch.setattr(
        zo.data.dataset, "make_tokenizer", lambda *how: real(*how[:2], seen.append(list(how[2])) or seen[0])
    )
    build_cache(spec, tmp_path / "c", progress=False)
    parts = list(spec.source().split_documents())
    assert seen[0] == [document.text for part, document in parts if part == "train"]
    assert len(seen[0]) == 57


def test_a_built_cache_is_returned_at_once(corpus, tmp_path, monkeypatch):
    spec = DatasetSpec(str(corpus))
    folder = build_cache(spec, tmp_path / "c", progress=False)
    monkeypatch.setattr("zo.data.dataset.make_tokenizer", lambda *_: pytest.fail("built again"))
    assert build_cache(spec, tmp_path / "c") == folder


def test_two_processes_building_at_once_leave_one_whole_cache(corpus, tmp_path):
    code = (
        "import sys; from pathlib import Path; from zo.data.dataset import *;"
        "build_cache(DatasetSpec(sys.argv[1], tokenizer='bytes'), Path(sys.argv[2]))"
    )
    command = [sys.executable, "-c", code, str(corpus), str(tmp_path / "c")]
    builders = [subprocess.Popen(command, stderr=subprocess.DEVNULL) for _ in range(2)]
    assert [builder.wait() for builder in builders] == [0, 0]
    alone = build_cache(DatasetSpec(str(corpus), tokenizer="bytes"), tmp_path / "alone", progress=False)
    assert [folder.name for folder in (tmp_path / "c").iterdir()] == [alone.name]
    assert contents(tmp_path / "c" / alone.name) == contents(alone)


def test_the_builder_that_finishes_second_discards_its_own(corpus, tmp_path, monkeypatch):
    import zo.data.dataset

    spec, real = DatasetSpec(str(corpus), tokenizer="bytes"), zo.data.dataset._write_cache

    def write_while_another_finishes(spec, folder, progress):
        real(spec, folder, progress)
        other = folder.with_name(spec.folder_name())
        if not other.exists():
            other.mkdir()
            real(spec, other, progress)
            (other / "timings.json").write_text("the other's")

    monkeypatch.setattr(zo.data.dataset, "_write_cache", write_while_another_finishes)
    folder = build_cache(spec, tmp_path / "c", progress=False)
    assert (folder / "timings.json").read_text() == "the other's"
    assert list((tmp_path / "c").iterdir()) == [folder]


def test_a_build_that_fails_leaves_nothing_to_read(corpus, tmp_path, monkeypatch):
    spec = DatasetSpec(str(corpus))
    monkeypatch.setattr("zo.data.dataset._describe", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        build_cache(spec, tmp_path / "c", progress=False)
    assert list((tmp_path / "c").iterdir()) == []
    with pytest.raises(UserError, match="no such folder; build it first"):
        open_cache(tmp_path / "c" / spec.folder_name())


def test_a_killed_builders_half_written_folder_is_never_read(corpus, tmp_path):
    spec = DatasetSpec(str(corpus), tokenizer="bytes")
    half = tmp_path / "c" / f".{spec.folder_name()}.building-elsewhere-1"
    half.mkdir(parents=True)
    (half / "train.bin").write_bytes(b"half")
    folder = build_cache(spec, tmp_path / "c", progress=False)
    assert open_cache(folder).meta["documents"]["train"] == 57
    assert (half / "train.bin").read_bytes() == b"half"  # it may be another host's, at work


def test_what_killed_builders_of_this_host_left_goes_and_what_one_builds_stays(corpus, tmp_path):
    spec = DatasetSpec(str(corpus), tokenizer="bytes")
    places = ["dead", "alive", "new"]
    dead, alive, new = (
        tmp_path / "c" / f".{spec.folder_name()}.building-{socket.gethostname()}-{name}" for name in places
    )
    for half in (dead, alive, new):
        half.mkdir(parents=True)
        (half / "train.bin").write_bytes(b"half")
    for half in (dead, alive):
        os.utime(half, (0, 0))
    descriptor = os.open(alive, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        build_cache(spec, tmp_path / "c", progress=False)
    finally:
        os.close(descriptor)
    assert not dead.exists()
    assert alive.exists()
    assert new.exists()  # its builder may be about to lock it


def test_a_builder_holds_its_folder_while_it_builds(corpus, tmp_path, monkeypatch):
    held = []

    def look(spec, folder, progress):
        descriptor = os.open(folder, os.O_RDONLY)
        held.append(not try_hold(descriptor))
        os.close(descriptor)
        write(spec, folder, progress)

    write = zo.data.dataset._write_cache
    monkeypatch.setattr(zo.data.dataset, "_write_cache", look)
    build_cache(DatasetSpec(str(corpus), tokenizer="bytes"), tmp_path / "c", progress=False)
    assert held == [True]


@pytest.mark.parametrize("leftover", [None, "train.bin", "other/file"])
def test_an_empty_or_partial_folder_in_the_way_is_replaced(corpus, tmp_path, leftover):
    spec = DatasetSpec(str(corpus), tokenizer="bytes")
    folder = tmp_path / "c" / spec.folder_name()  # Snakemake makes its outputs' folders
    folder.mkdir(parents=True)
    if leftover:
        (folder / leftover).parent.mkdir(exist_ok=True)
        (folder / leftover).write_bytes(b"x")
    assert open_cache(build_cache(spec, tmp_path / "c", progress=False)).vocab_size == 257
    assert list((tmp_path / "c").iterdir()) == [folder]


def cut_file(folder):
    (folder / "train.bin").write_bytes((folder / "train.bin").read_bytes()[:-2])


def spoil_meta(folder):
    (folder / "meta.json").write_text("{")


def lose_file(folder):
    (folder / "validation.bin").unlink()


def empty_meta(folder):
    (folder / "meta.json").write_text("{}")


@pytest.mark.parametrize("damage", [cut_file, spoil_meta, lose_file, empty_meta])
def test_a_damaged_cache_says_to_delete_its_folder_and_a_build_mends_it(corpus, tmp_path, damage):
    spec = DatasetSpec(str(corpus), tokenizer="bytes")
    folder = build_cache(spec, tmp_path / "c", progress=False)
    before = contents(folder)
    damage(folder)
    with pytest.raises(UserError, match=r"is damaged \(.*\); delete the folder") as caught:
        open_cache(folder)
    assert str(folder) in str(caught.value)
    build_cache(spec, tmp_path / "c", progress=False)
    assert contents(folder) == before


def test_a_vocabulary_beyond_16_bits_is_stored_in_32(corpus, tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {"<|endoftext|>": 0, "[UNK]": 1, "to": 70_000, "Hello": 2} | {
        f"w{i}": i for i in range(3, 70_000)
    }
    backend = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.save(str(tmp_path / "words.json"))
    spec = DatasetSpec(str(corpus), tokenizer=str(tmp_path / "words.json"))
    cache = open_cache(build_cache(spec, tmp_path / "c", progress=False))
    assert (cache.meta["dtype"], cache.train.dtype, cache.vocab_size) == ("uint32", np.uint32, 70_001)
    assert 70_000 in cache.batch(0, 1, 2, 16)
    assert cache.batch(0, 1, 2, 16).dtype == torch.int64


def test_the_key_changes_with_whatever_shapes_the_tokens_and_nothing_else(corpus, tmp_path):
    base = DatasetSpec(str(corpus))
    others = [
        DatasetSpec(str(corpus), max_samples=30),
        DatasetSpec(str(corpus), tokenizer="bytes"),
        DatasetSpec(str(corpus), vocab_size=600),
        DatasetSpec(str(corpus), text_column="body"),
        DatasetSpec("shakespeare"),
        DatasetSpec("kjv"),
        DatasetSpec("c4"),
        DatasetSpec("c4", revision="abc"),
    ]
    assert len({spec.key() for spec in [base, *others]}) == 9
    assert base.key() == DatasetSpec(str(corpus), vocab_size=512, text_column="text").key()
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(corpus.read_bytes())
    assert DatasetSpec(str(copy)).key() == base.key()
    copy.write_bytes(corpus.read_bytes().replace(b"not", b"now", 1))
    assert DatasetSpec(str(copy)).key() != base.key()


def test_a_very_large_file_is_known_by_its_size_and_time(corpus, monkeypatch):
    monkeypatch.setattr("zo.data.textfiles.HASHED_BYTES", 10)
    from zo.data.textfiles import fingerprint

    [[_, size, digest]] = fingerprint(Path(corpus))
    assert (size, digest) == (corpus.stat().st_size, f"mtime {corpus.stat().st_mtime_ns}")


def test_a_packages_version_is_in_the_key(monkeypatch):
    before = DatasetSpec().key()
    monkeypatch.setattr("zo.data.textfiles.version", lambda _: "99")
    assert DatasetSpec().key() != before


def test_a_folder_name_says_dataset_and_tokenizer_in_safe_characters(tmp_path):
    assert DatasetSpec().folder_name() == f"shakespeare-bpe512-{DatasetSpec().key()}"
    path = tmp_path / "my texts {x}é.txt"
    path.write_text("a")
    name = DatasetSpec(str(path), tokenizer="owner/some-name").folder_name()
    assert name == f"my_texts_x_-some-name-{name[-8:]}"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_samples": 0}, "max_samples 0: allowed: a whole number from 1"),
        ({"max_samples": "many"}, "max_samples 'many': allowed: a whole number from 1"),
        ({"vocab_size": 512.5}, r"vocab_size 512\.5: allowed: a whole number from 1"),
        ({"tokenizer": "bite"}, "unknown tokenizer 'bite'"),
        ({"tokenizer": "bytes", "vocab_size": 99}, "vocab_size 99: tokenizer 'bytes' has 257"),
    ],
)
def test_a_wrong_field_is_refused_when_the_spec_is_made(fields, message):
    with pytest.raises(UserError, match=message):
        DatasetSpec(**fields)


@pytest.fixture(scope="module")
def counting(tmp_path_factory):
    """Return a function from a training text's length to its counting cache."""
    return lambda tokens: counting_cache(tmp_path_factory.mktemp("counting"), tokens)


@settings(max_examples=30, deadline=None)
@given(
    tokens=st.integers(9, 400),
    block=st.integers(1, 8),
    seed=st.integers(-(2**40), 2**70),
    epoch=st.integers(0, 3),
)
def test_an_epoch_visits_every_block_once_in_an_order_of_its_own(counting, tokens, block, seed, epoch):
    cache = counting(tokens)
    steps = cache.steps_per_epoch(1, block)
    batches = torch.cat([cache.batch(seed, epoch * steps + i + 1, 1, block) for i in range(steps)])
    assert steps == (tokens - 1) // block
    assert len(batches[:, :-1].unique()) == steps * block  # no token is an input twice
    assert ((batches[:, 1:] - batches[:, :-1]) % tokens == 1).all()  # consecutive, round the ring


def test_a_batch_depends_on_seed_and_step_alone(shakespeare):
    one, other = open_cache(shakespeare), open_cache(shakespeare)
    steps = one.steps_per_epoch(4, 64)
    asked = [1, 2, steps, steps + 1, 3 * steps]
    forwards = [one.batch(7, step, 4, 64) for step in asked]
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    backwards = [other.batch(7, step, 4, 64) for step in reversed(asked)]
    assert all(torch.equal(a, b) for a, b in zip(forwards, reversed(backwards), strict=True))
    assert forwards[0].shape == (4, 65)
    assert forwards[0].dtype == torch.int64
    assert not torch.equal(forwards[0], one.batch(8, 1, 4, 64))
    assert not torch.equal(forwards[0], forwards[3])  # the next epoch has another order


@pytest.mark.parametrize("tokens", [9, 10, 400, 70_000])
def test_an_order_of_half_the_bytes_is_numpys_permutation(counting, tokens):
    cache = counting(tokens)
    words = np.frombuffer(hashlib.sha256(b"epoch order:5:2").digest(), "<u4")
    draw = np.random.default_rng(np.random.SeedSequence(words.tolist()))
    offset, order = draw.integers(tokens), draw.permutation((tokens - 1) // 2)
    steps = cache.steps_per_epoch(1, 2)
    firsts = [int(cache.batch(5, 2 * steps + i + 1, 1, 2)[0, 0]) for i in range(min(steps, 50))]
    assert firsts == ((offset + order[:50] * 2) % tokens).tolist()
    assert cache._epoch_order(5, 2, 2)[1].dtype == np.int32


def test_batches_leave_the_global_generators_untouched(shakespeare):
    before = (torch.get_rng_state(), np.random.get_state()[1].copy())  # noqa: NPY002
    open_cache(shakespeare).batch(1, 1, 4, 64)
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()  # noqa: NPY002


def test_half_the_batch_size_reads_the_same_blocks_in_the_same_order(shakespeare):
    cache = open_cache(shakespeare)
    halves = torch.cat([cache.batch(3, step, 2, 32) for step in (1, 2)])
    assert torch.equal(halves, cache.batch(3, 1, 4, 32))


def test_each_epoch_shifts_the_grid_of_blocks(counting):
    cache = counting(1001)
    grids = {int(cache.batch(0, epoch * 10 + 1, 1, 100)[0, 0]) % 100 for epoch in range(8)}
    assert len(grids) > 4


@settings(max_examples=30, deadline=None)
@given(tokens=st.integers(2, 300), block=st.integers(1, 20), count=st.integers(1, 30))
def test_validation_blocks_are_fixed_evenly_spread_and_do_not_overlap(tokens, block, count, tmp_path_factory):
    cache = counting_cache(tmp_path_factory.mktemp("v"), 10, tokens)
    available = (tokens - 1) // block
    if available == 0:
        with pytest.raises(
            UserError, match=rf"block_size {block}: longer than the validation text.*{tokens}"
        ):
            cache.validation_blocks(block, count)
        return
    blocks = cache.validation_blocks(block, count)
    assert blocks.shape == (min(count, available), block + 1)
    gaps = blocks[1:, 0] - blocks[:-1, 0]
    assert (gaps >= block).all()
    assert len(gaps) == 0 or gaps.max() - gaps.min() <= block
    assert torch.equal(blocks, cache.validation_blocks(block, count))
    assert len(cache.validation_blocks(block)) == available


def test_a_batch_longer_than_the_corpus_is_an_error_that_says_how_long_it_is(counting):
    cache = counting(65)
    assert cache.steps_per_epoch(1, 64) == 1
    for batch_size, block_size in ((1, 65), (2, 64), (65, 1)):
        with pytest.raises(
            UserError, match=rf"batch_size {batch_size} x block_size {block_size}: .*65 tokens"
        ):
            cache.steps_per_epoch(batch_size, block_size)
    with pytest.raises(UserError, match="batch_size 0"):
        cache.steps_per_epoch(0, 8)
    with pytest.raises(UserError, match="0 validation blocks"):
        cache.validation_blocks(8, 0)


def test_progress_goes_to_stderr_with_documents_and_tokens(corpus, tmp_path, capsys):
    build_cache(DatasetSpec(str(corpus), tokenizer="bytes"), tmp_path / "c")
    streams = capsys.readouterr()
    assert streams.out == ""
    assert "60 documents" in streams.err
    assert "tokens=" in streams.err


def prune_by_hand(folder):
    for path in folder.iterdir():
        if path.name != "meta.json":
            path.unlink()


def test_a_pruned_cache_gets_the_same_bytes_back_around_its_own_meta(corpus, tmp_path):
    spec = DatasetSpec(str(corpus), tokenizer="bytes")
    folder = build_cache(spec, tmp_path / "c", progress=False)
    before, then = contents(folder), (folder / "meta.json").stat()
    prune_by_hand(folder)
    build_cache(spec, tmp_path / "c", progress=False)
    assert contents(folder) == before
    now = (folder / "meta.json").stat()
    assert (now.st_mtime_ns, now.st_ino) == (then.st_mtime_ns, then.st_ino)
    assert [path.name for path in (tmp_path / "c").iterdir() if path.is_dir()] == [folder.name]


def test_a_pruned_cache_whose_text_comes_out_other_is_not_put_together(corpus, tmp_path):
    spec = DatasetSpec(str(corpus), tokenizer="bytes")
    folder = build_cache(spec, tmp_path / "c", progress=False)
    prune_by_hand(folder)
    meta = json.loads((folder / "meta.json").read_text())
    meta["sha256"]["train"] = "0" * 64  # of another tokenizer's version, say
    (folder / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(UserError, match="come out other than those that runs have read: delete the folder"):
        build_cache(spec, tmp_path / "c", progress=False)
    assert [path.name for path in folder.iterdir()] == ["meta.json"]


def test_of_many_that_want_a_pruned_cache_one_builds_it_and_the_others_wait(corpus, tmp_path, monkeypatch):
    spec, built, write = DatasetSpec(str(corpus), tokenizer="bytes"), [], zo.data.dataset._write_cache
    prune_by_hand(build_cache(spec, tmp_path / "c", progress=False))

    def count(*arguments):
        built.append(arguments)
        time.sleep(0.3)
        write(*arguments)

    monkeypatch.setattr(zo.data.dataset, "_write_cache", count)
    with ThreadPoolExecutor(4) as pool:  # a lock of an open file: threads exclude each other too
        folders = list(pool.map(lambda _: build_cache(spec, tmp_path / "c", progress=False), range(4)))
    assert len(built) == 1
    assert open_cache(folders[0]).vocab_size == 257
