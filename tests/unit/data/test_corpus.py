"""Corpora: every hub name's real layout, local files, the embedded ones, and what is held out."""

import errno
import gzip
import importlib.util
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zo.data.corpus import DATASETS, Document, cut_last_bytes, find_source, is_held_out, join_articles
from zo.data.dataset import DatasetSpec, build_cache, open_cache
from zo.data.textfiles import file_documents, strip_markdown
from zo.errors import UserError

COSMOPEDIA = {
    "prompt": "Write",
    "text_token_length": 9,
    "seed_data": "web",
    "format": "blog",
    "audience": "all",
}
FINEWEB = {"id": "<urn:1>", "dump": "CC-MAIN-2013-20", "url": "http://a.b", "file_path": "s3://c"}
FINEWEB |= {"language": "en", "language_score": 0.9, "token_count": 7}
FINEWEB_EDU = FINEWEB | {"score": 3.1, "int_score": 3}
C4 = {"timestamp": "2019-04-25T12:57:54Z", "url": "http://a.b"}
COSMOPEDIA_PARTS = DATASETS["cosmopedia"].configs
ZSTANDARD = importlib.util.find_spec("zstandard") is not None


def texts(kind, count=24):
    return [f"{kind} document {i}: the quick brown fox é jumps over {i} lazy dogs" for i in range(count)]


def wiki_rows(kind, count=24):
    rows = []
    for i in range(count):
        rows += [
            "",
            f" = {kind} {i} = \n",
            "",
            f" Some text {i} of it . \n",
            " = = Section = = \n",
            " More . \n",
        ]
    return rows


def wiki_file(kind):
    return [{"text": text} for text in wiki_rows(kind)]


def rows_of(kind, columns=None):
    return [{**(columns or {}), "text": text} for text in texts(kind)]


# name -> repository, its README's configs (None: it has none), its files with their real columns
LAYOUTS = {
    "cosmopedia-100k": (None, {"data/train-00000-of-00002.parquet": rows_of("train", COSMOPEDIA)}),
    "cosmopedia": (
        {part: {"train": f"data/{part}/train-*"} for part in COSMOPEDIA_PARTS},
        {f"data/{p}/train-00000-of-00001.parquet": rows_of(p, COSMOPEDIA) for p in COSMOPEDIA_PARTS},
    ),
    "wikitext-103": (
        {
            config: {split: f"{config}/{split}-*" for split in ("test", "train", "validation")}
            for config in ("wikitext-103-raw-v1", "wikitext-2-raw-v1")
        },
        {
            f"{config}/{split}-00000-of-00001.parquet": wiki_file(f"{config} {split}")
            for config in ("wikitext-103-raw-v1", "wikitext-2-raw-v1")
            for split in ("test", "train", "validation")
        },
    ),
    "openwebtext": (None, {f"plain_text/train/000{i}.parquet": rows_of(f"train {i}") for i in range(2)}),
    "c4": (
        {
            config: {
                "train": f"{config}/c4-train.*.json.gz",
                "validation": f"{config}/c4-validation.*.json.gz",
            }
            for config in ("en", "realnewslike")
        },
        {
            f"{config}/c4-{split}.00000-of-00001.json.gz": rows_of(f"{config} {split}", C4)
            for config in ("en", "realnewslike")
            for split in ("train", "validation")
        },
    ),
    "tinystories": (
        None,
        {
            "data/train-00000-of-00001-2d5a1467fff1081b.parquet": rows_of("train"),
            "data/validation-00000-of-00001-869c898b519ad725.parquet": rows_of("validation"),
            "TinyStories-train.txt": "not to be read",
            "TinyStories-valid.txt": "not to be read",
        },
    ),
    "pile-uncopyrighted": (
        None,
        {
            f"{name}.jsonl{'.zst' if ZSTANDARD else ''}": rows_of(
                kind, {"meta": {"pile_set_name": "Pile-CC"}}
            )
            for name, kind in {"train/00": "train", "val": "validation", "test": "test"}.items()
        },
    ),
    "fineweb": (
        {"default": {"train": "data/*/*"}, "sample-10BT": {"train": "sample/10BT/*"}},
        {
            "data/CC-MAIN-2013-20/000_00000.parquet": rows_of("all", FINEWEB),
            "sample/10BT/000_00000.parquet": rows_of("sample", FINEWEB),
        },
    ),
    "fineweb-edu": (
        {"default": {"train": "data/*/*"}, "sample-10BT": {"train": "sample/10BT/*"}},
        {
            "data/CC-MAIN-2013-20/train-00000-of-00014.parquet": rows_of("all", FINEWEB_EDU),
            "sample/10BT/000_00000.parquet": rows_of("sample", FINEWEB_EDU),
        },
    ),
}
LAYOUTS["fineweb-edu-10BT"] = LAYOUTS["fineweb-edu"]


def write_rows(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        return pq.write_table(pa.Table.from_pylist(rows), path)
    if isinstance(rows, str):
        return path.write_text(rows)
    raw = "".join(json.dumps(row) + "\n" for row in rows).encode()
    if path.suffix == ".gz":
        raw = gzip.compress(raw)
    if path.suffix == ".zst":
        raw = pa.Codec("zstd").compress(raw, asbytes=True)
    return path.write_bytes(raw)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Return a function that lays out a hub repository in a folder that stands in for the hub."""
    import datasets

    monkeypatch.setenv("ZO_HUB_ROOT", str(tmp_path / "hub"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")

    def lay_out(name):
        configs, files = LAYOUTS[name]
        repo = tmp_path / "hub" / DATASETS[name].repo
        for file, rows in files.items():
            write_rows(repo / file, rows)
        if configs:
            yaml = {
                "configs": [
                    {"config_name": c, "data_files": [{"split": s, "path": p} for s, p in splits.items()]}
                    for c, splits in configs.items()
                ]
            }
            (repo / "README.md").write_text(f"---\n{json.dumps(yaml)}\n---\n# A card\n")
        return repo

    return lay_out


def split(source):
    both = {"train": [], "validation": []}
    for part, document in source.split_documents():
        both[part].append(document.text)
    return both


def test_every_hub_name_of_the_spec_has_a_layout_here():
    assert set(LAYOUTS) == {name for name, corpus in DATASETS.items() if not corpus.embedded}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_hub_repository_in_its_real_layout_becomes_a_cache_through_load_dataset(
    name, hub, tmp_path, monkeypatch
):
    import datasets

    hub(name)
    calls, real = [], datasets.load_dataset

    def watch(repo, **options):
        calls.append((repo, options))
        return real(repo, **options)

    monkeypatch.setattr(datasets, "load_dataset", watch)
    cache = open_cache(build_cache(DatasetSpec(name, tokenizer="bytes"), tmp_path / "c", progress=False))
    corpus = DATASETS[name]
    assert {Path(repo) for repo, _ in calls} == {tmp_path / "hub" / corpus.repo}
    assert {options["name"] for _, options in calls} == set(corpus.configs)
    assert {options["streaming"] for _, options in calls} == {corpus.streamed}
    assert {options["revision"] for _, options in calls} == {corpus.revision}
    assert not any("trust_remote_code" in options for _, options in calls)
    train, validation = (cache.tokenizer().decode(part) for part in (cache.train, cache.validation))
    assert cache.meta["documents"]["train"] > 20
    assert cache.meta["documents"]["validation"] > 0
    assert "not to be read" not in train
    expected = {"fineweb": "all", "fineweb-edu": "all", "fineweb-edu-10BT": "sample"}.get(name, "train")
    assert all(part in train for part in COSMOPEDIA_PARTS) if name == "cosmopedia" else expected in train
    if corpus.validation_split:
        assert "validation" in validation
        assert "validation" not in train
        assert "train" not in validation
    else:
        assert not set(train.split("<|endoftext|>")) & set(validation.split("<|endoftext|>")) - {""}


def test_the_users_revision_and_text_column_reach_the_hub(hub, monkeypatch):
    import datasets

    hub("cosmopedia-100k")
    options = {}
    real = datasets.load_dataset
    monkeypatch.setattr(datasets, "load_dataset", lambda repo, **o: options.update(o) or real(repo, **o))
    source = find_source("cosmopedia-100k", revision="abc123", text_column="prompt")
    assert split(source)["train"][0] == "Write"
    assert options["revision"] == "abc123"


def test_a_wrong_text_column_of_a_hub_corpus_names_the_columns_there_are(hub):
    hub("c4")
    with pytest.raises(UserError, match=r"'body'.*there are: .*timestamp.*url"):
        split(find_source("c4", text_column="body"))


def test_max_samples_bounds_a_streamed_corpus_and_its_own_validation_split(hub):
    hub("c4")
    both = split(find_source("c4", max_samples=10))
    assert both["train"] == texts("en train")[:10]
    assert both["validation"] == texts("en validation")[:20]


def test_cosmopedia_takes_one_document_of_each_config_in_turn(hub):
    hub("cosmopedia")
    both = split(find_source("cosmopedia", max_samples=16))  # fewer than 20: in order but for the end
    assert [text.split()[0] for text in both["train"][:8]] == list(COSMOPEDIA_PARTS)


def test_a_hub_repository_that_cannot_be_read_is_one_line_naming_it(tmp_path, monkeypatch):
    monkeypatch.setenv("ZO_HUB_ROOT", str(tmp_path))
    with pytest.raises(UserError, match=r"^dataset 'tinystories': cannot read roneneldan/TinyStories.*$"):
        split(find_source("tinystories"))


def test_a_parquet_file_that_a_disk_fails_to_read_is_not_called_damaged(tmp_path, monkeypatch):
    path = tmp_path / "text.parquet"
    write_rows(path, [{"text": "p"}])

    def fail(*_, **__):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", fail)
    with pytest.raises(OSError, match="Input/output error"):
        list(find_source(str(path)).split_documents())


def test_wikitext_rows_are_joined_into_articles_at_single_equals_headings():
    articles = dict(join_articles(iter(wiki_rows("t", 2))))
    assert [title for title in articles if articles[title].strip()] == ["t 0", "t 1"]
    assert " = = Section = = \n More . \n" in articles["t 1"]


def test_shakespeare_is_38_plays_without_markdown():
    plays = [document for _, document in find_source("shakespeare").split_documents()]
    assert len(plays) == 38
    assert len({play.name for play in plays}) == 38
    assert sum(len(play.text) for play in plays) > 4_500_000
    assert not any(mark in play.text for play in plays for mark in ("#", "*", "_", "\\", "  \n"))
    hamlet = next(play.text for play in plays if play.name == "Hamlet")
    assert "FRANCISCO at his post. Enter to him BERNARDO\n\nBERNARDO\nWho's there?\n" in hamlet
    held_out = [d.name for part, d in find_source("shakespeare").split_documents() if part == "validation"]
    assert held_out == ["Richard III", "Antony and Cleopatra"]


def test_kjv_is_66_books_in_order():
    books = [document for _, document in find_source("kjv").split_documents()]
    assert [books[0].name, books[65].name, len(books)] == ["Genesis", "Revelation", 66]
    assert books[0].text.startswith("Genesis\n\nIn the beginning God created the heaven and the earth.\n")


def test_markdown_is_stripped_and_stage_directions_kept():
    text = "# A\n\n_\\[Aside]_  \n**B**  \nI _will_ not\\--no\n*Exit.*\n"
    assert strip_markdown(text) == "A\n\n[Aside]\nB\nI will not--no\nExit.\n"


def test_local_files_give_the_documents_that_the_spec_says(tmp_path):
    (tmp_path / "a.txt").write_bytes("\ufeffone\r\ntwo\r\n\r\n \r\nthrée\n\n\n".encode())
    (tmp_path / "b.jsonl").write_text('{"body": "x", "n": 1}\n\n{"body": "y"}\n{"body": null}\n')
    write_rows(tmp_path / "c.parquet", [{"text": "p", "n": 1}, {"text": None, "n": 2}, {"text": "q", "n": 3}])
    write_rows(tmp_path / "folder/z.txt", "last\n\nstill last")
    write_rows(tmp_path / "folder/deep/a.md", "first")
    write_rows(tmp_path / "folder/ignored.csv", "no")

    def read(name, column="text"):
        return [d[1] for d in find_source(str(tmp_path / name), text_column=column)._documents(None)]

    assert read("a.txt", None) == ["one\ntwo\n", "thrée\n"]
    assert read("b.jsonl", "body") == ["x", "y"]
    assert read("c.parquet") == ["p", "q"]
    assert read("folder", None) == ["first", "last\n\nstill last"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.txt", b"", "is empty"),
        ("blank.txt", b" \n\n", "too little text"),
        ("latin.txt", b"ab\nc\xe9d", r"not UTF-8 text \(at byte 4\)"),
        ("x.csv", b"a,b", r"unknown extension.*'\.csv'.*allowed: \.txt, \.md, \.jsonl, \.parquet"),
        ("bad.jsonl", b'{"text": "a"}\n{"text": \n', r"line 2: not JSON"),
        ("list.jsonl", b"[1]\n", r"line 1: a JSON list"),
        ("number.jsonl", b'{"text": 3}\n', r"line 1: text_column 'text' holds int"),
        (
            "column.jsonl",
            b'{"body": "a", "id": 1}\n',
            r"no text_column 'text'; the columns there are: body, id",
        ),
        ("bad.parquet", b"nothing like it", "not a readable Parquet file"),
        ("missing.txt", None, "no such file or folder"),
        ("folder/", None, "holds no file of .txt"),
    ],
)
def test_a_bad_local_file_is_one_line_that_names_it(tmp_path, name, content, message):
    path = tmp_path / name
    if name.endswith("/"):
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        build_cache(DatasetSpec(str(path), tokenizer="bytes"), tmp_path / "c", progress=False)
    assert name.rstrip("/") in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "c").glob("*"))


@pytest.mark.parametrize("line", ['{"text": ' + "1" * 5000 + "}", "[" * 100_000], ids=["digits", "brackets"])
def test_a_line_that_is_too_much_for_pythons_reader_is_named(tmp_path, line):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n' + line)
    with pytest.raises(UserError, match=r"a\.jsonl', line 2: not JSON that Python reads"):
        list(file_documents(tmp_path / "a.jsonl", "text"))


def test_half_a_surrogate_pair_in_json_becomes_the_replacement_character(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a\\ud83d b \\ud83d\\ude00"}\n')
    documents = [text for _, text in file_documents(tmp_path / "a.jsonl", "text")]
    assert documents == ["a\ufffd b \U0001f600"]


def test_a_missing_parquet_column_names_the_columns_there_are(tmp_path):
    write_rows(tmp_path / "c.parquet", [{"body": "p", "n": 1}])
    with pytest.raises(UserError, match=r"no text_column 'text'; the columns there are: body, n"):
        split(find_source(str(tmp_path / "c.parquet")))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dataset": "shakespear"}, r"unknown dataset 'shakespear': did you mean 'shakespeare'\? allowed: "),
        ({"dataset": "./nowhere/x.txt"}, r"'\./nowhere/x\.txt': no such file or folder"),
        ({"dataset": "roneneldan/TinyStories"}, r"did you mean 'tinystories'"),
        ({"dataset": "kjv", "revision": "main"}, r"revision 'main': dataset 'kjv' is embedded"),
        ({"dataset": "kjv", "text_column": "verse"}, r"text_column 'verse': dataset 'kjv' is embedded"),
    ],
)
def test_a_dataset_that_cannot_be_found_names_the_nearest(arguments, message):
    with pytest.raises(UserError, match=message):
        find_source(**arguments)


def test_exactly_one_document_in_every_20_is_held_out():
    assert all(sum(is_held_out(20 * block + i) for i in range(20)) == 1 for block in range(50))
    assert len({index % 8 for index in range(4000) if is_held_out(index)}) == 8  # no period of cosmopedia's


def test_training_and_validation_share_no_document_and_together_are_the_corpus(tmp_path):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": f"d{i}"}) + "\n" for i in range(205)))
    both = split(find_source(str(tmp_path / "a.jsonl")))
    assert not set(both["train"]) & set(both["validation"])
    assert sorted(both["train"] + both["validation"]) == sorted(f"d{i}" for i in range(205))
    assert 10 <= len(both["validation"]) <= 11
    first_100 = split(find_source(str(tmp_path / "a.jsonl"), max_samples=100))
    assert len(first_100["train"]) == 95
    assert set(first_100["validation"]) < set(both["validation"])  # the rule looks at the index alone


@given(st.lists(st.text(min_size=1, max_size=60), min_size=1, max_size=19))
def test_of_few_documents_the_last_5_percent_of_bytes_are_held_out(parts):
    cut = list(cut_last_bytes([Document(str(i), text) for i, text in enumerate(parts)]))
    held_out = "".join(document.text for part, document in cut if part == "validation")
    whole = "".join(parts)
    assert held_out
    assert whole.endswith(held_out)
    asked = max(1, len(whole.encode()) // 20)
    assert asked <= len(held_out.encode()) < asked + 4  # at most the rest of one character more
    kept = [document.text for part, document in cut if part == "train"]
    assert all(text in whole[: len(whole) - len(held_out)] for text in kept)
