"""What a run is: every setting of one cell, checked, with its name and its JSON.

RunSpec's fields are the single source of the flags of ``zo train``, the keys of a study file, the axes
and their suffixes in run names, the defaults and the documentation (docs/settings.md is made from them).
"""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from zo.data.dataset import DatasetSpec
from zo.errors import UserError, suggest, unknown
from zo.fields import Integer, Number, axis, common, describe
from zo.lengths import LENGTHS, total_steps
from zo.methods import METHODS, uses_backprop
from zo.sizes import (
    ARCHITECTURES,
    BYTES_VOCABULARY,
    DEFAULT_VOCABULARY,
    GPT2_VOCABULARY,
    SIZES,
    max_positions,
    model_shape,
    validate_scope,
)
from zo.step import plain_sgd


class RunSpec(BaseModel):
    """One run, resolved: with this and the same versions anyone can repeat it."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=False)

    # The cell.
    mode: str = axis(..., f"method: {', '.join(METHODS)}")
    scope: str = axis("reduced", "what is trained: full, reduced, head, norms, block<i> or embedding")
    batch_size: Integer = axis(8, "sequences a step", ge=1)
    query_budget_q: Integer = axis(1, "directions a ZO step evaluates (0 for modes without any)", ge=0)
    learning_rate: Number = axis(1e-5, "peak learning rate", gt=0)
    # Further axes.
    optimizer: Literal["sgd", "adam", "adamw", "muon", "mudamw"] = axis("sgd", "update rule", "opt")
    momentum: Number = axis(0.0, "momentum of sgd; of muon where above 0 (else 0.95)", "mom", ge=0, lt=1)
    weight_decay: Number = axis(0.0, "weight decay (decoupled but for sgd and adam)", "wd", ge=0)
    cautious: bool = axis(False, "mudamw: drop coordinates where update and gradient disagree", "cautious")
    schedule: Literal["constant", "cosine"] = axis("constant", "learning rate after the warm-up", "sched")
    warmup_steps: Integer = axis(0, "steps of linear warm-up", "warm", ge=0)
    epsilon: Number = axis(1e-3, "length of the finite difference", "eps", gt=0)
    direction_family: Literal["gaussian", "rademacher", "lowrank"] = axis(
        "gaussian", "distribution of directions", "dir"
    )
    rank: Integer = axis(1, "of lowrank directions, at every matrix", "rank", ge=1)
    sides: Literal["two", "one"] = axis("two", "central or forward difference", "sides")
    shard_batch: bool = axis(False, "each direction reads its own 1/q of the batch", "shard")
    bp_interval: Integer | None = axis(None, "Calibrate, Instruct: backprop every n-th step", "bp", ge=1)
    bp_learning_rate: Number | None = axis(
        None,
        "of Calibrate's backprop steps, of Layerwise's embedding phase; learning_rate if not given",
        "bplr",
        gt=0,
    )
    embedding_parts: Integer = axis(
        2, "Layerwise: length of the embedding's phase, in those of a block", "emb", ge=1
    )
    cosine_target: Number = axis(0.9, "Instruct: cosine of directions with the gradient", "cos", gt=0, le=1)
    blend_bp_gradient: bool = axis(False, "Instruct: average estimate and gradient", "blend")
    gradient_accumulation: Integer = axis(1, "FO: parts that the batch is split into", "acc", ge=1)
    gradient_checkpointing: bool = axis(False, "recompute activations in backprop to save memory", "gc")
    seed: Integer = axis(0, "of initial weights, batches and noise", "seed", ge=0, lt=2**53)
    model_size: str = axis("100k", f"model preset: {', '.join(SIZES)}", "size")
    architecture: Literal[*ARCHITECTURES] = axis("gpt2", "model family", "arch")
    block_size: Integer = axis(64, "tokens a training sequence", "block", ge=1)
    precision: Literal["fp32", "bf16", "fp16"] = axis("fp32", "of evaluations", "prec")
    weights: Literal["fp32", "bf16", "bf16-nearest"] = axis(
        "fp32",
        "stored type of matrices; bf16: rounded stochastically, wants precision bf16 and plain sgd",
        "weights",
    )
    ranks: Integer = axis(1, "processes that share a step; the result is the same to rounding", "ranks", ge=1)

    # The data, one for all runs of a study.
    dataset: str = common("shakespeare", "name of a corpus, or path of a text, jsonl or parquet file")
    dataset_revision: str | None = common(None, "revision of a hub dataset")
    max_samples: Integer | None = common(None, "read at most this many documents", ge=1)
    text_column: str | None = common(None, "column of a jsonl or parquet file that holds the text")
    tokenizer: str | None = common(None, "bpe, bytes, gpt2, or a hub name or path; by size if not given")
    vocab_size: Integer | None = common(
        None, "vocabulary of a bpe tokenizer; by size if not given", ge=BYTES_VOCABULARY
    )
    bp_dataset: str | None = common(None, "Calibrate, Instruct: corpus of the backprop batches, if another")

    # How long, exactly one of these.
    max_steps: Integer | None = common(None, "length in steps", ge=1)
    epochs: Number | None = common(None, "length in passes over the training tokens", gt=0)
    max_tokens: Number | None = common(None, "length in training tokens read", ge=1)
    max_forwards: Number | None = common(None, "length in forward passes", ge=1)

    # How it is watched and kept.
    log_interval: Integer = common(10, "steps between rows of the log", ge=1)
    validation_interval: Integer = common(100, "steps between measurements of validation loss", ge=1)
    validation_blocks: Integer = common(64, "held-out blocks that validation loss is the mean of", ge=1)
    validation_block_size: Integer = common(64, "tokens of a validation block, for every run", ge=1)
    checkpoint_interval: Integer = common(200, "steps between checkpoints", ge=1)

    # How ZO estimates are evaluated; the result is the same to rounding.
    plan: Literal["auto", "sequential", "parallel"] = common(
        "auto", "how a ZO step's evaluations are laid out"
    )
    parallel_batch_size: Integer | None = common(None, "directions in flight; auto: at most 8", ge=1)

    @model_validator(mode="before")
    @classmethod
    def _drop_unused(cls, data: dict) -> dict:
        """Give the settings that the mode does not read their defaults, so that equal runs are equal."""
        mode = data.get("mode")
        if not isinstance(mode, str) or mode not in METHODS:
            raise unknown("mode", mode, METHODS)
        kept = {key: value for key, value in data.items() if value is not None and uses(mode, key)}
        if not uses(mode, "query_budget_q"):
            kept["query_budget_q"] = 0
        return kept

    @model_validator(mode="after")
    def _check(self) -> "RunSpec":
        _check_method(self)
        if self.model_size not in SIZES:
            raise unknown("model_size", self.model_size, SIZES)
        validate_scope(self.scope, self.model_size, self.architecture)
        positions = max_positions(self.model_size, self.architecture)
        for key in ("block_size", "validation_block_size"):
            if getattr(self, key) > positions:
                raise UserError(
                    f"{key}: {getattr(self, key)} is not allowed: "
                    f"model_size {self.model_size} has {positions} positions"
                )
        given = [key for key in LENGTHS if getattr(self, key) is not None]
        if len(given) != 1:
            raise UserError(
                f"a run's length is exactly one of {', '.join(LENGTHS)}: "
                f"{' and '.join(given) if given else 'none'} given"
            )
        if self.batch_size % self.gradient_accumulation:
            raise UserError(
                f"gradient_accumulation: {self.gradient_accumulation} is not allowed: "
                f"it must divide batch_size {self.batch_size}"
            )
        check_ranks(self, self.ranks)
        if not self.epochs:  # which only the corpus can tell
            total_steps(self)
        self._resolve_tokenizer()
        return self

    def _resolve_tokenizer(self) -> None:
        """Write the tokenizer and vocabulary that the size implies into the spec, so that it says them."""
        small = DEFAULT_VOCABULARY[self.model_size] < GPT2_VOCABULARY
        tokenizer = self.tokenizer or ("bpe" if small else "gpt2")
        object.__setattr__(self, "tokenizer", tokenizer)
        if tokenizer == "bpe" and self.vocab_size is None:
            object.__setattr__(self, "vocab_size", DEFAULT_VOCABULARY[self.model_size])

    @classmethod
    def make(cls, **settings: Any) -> "RunSpec":
        """Build a spec; a bad value becomes a UserError that names it and what is allowed."""
        try:
            return cls(**settings)
        except ValidationError as error:
            raise UserError(describe(error, cls)) from None

    @property
    def name(self) -> str:
        """``<mode>_<scope>_bs<bs>_q<q>_lr<lr>`` and a suffix for each axis off its default."""
        parts = [self.mode, self.scope, f"bs{self.batch_size}", f"q{self.query_budget_q}"]
        parts.append(f"lr{format_number(self.learning_rate)}")
        for key, suffix in SUFFIXES.items():
            value = getattr(self, key)
            if value != RunSpec.model_fields[key].default:
                parts.append(suffix + format_value(value))
        return "_".join(parts)

    @property
    def layers(self) -> int:
        """Blocks of the model."""
        return model_shape(self.model_size, self.architecture).layers

    def to_json(self) -> str:
        """One line with sorted keys: equal specs have equal text."""
        return json.dumps(self.model_dump(), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "RunSpec":
        """Read ``to_json``'s text, or a spec.json file's."""
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise UserError(f"the spec is not JSON: {error}") from None
        if not isinstance(data, dict):
            raise UserError("the spec must be one JSON object")
        return cls.make(**data)


SUFFIXES: dict[str, str] = {
    key: info.json_schema_extra["suffix"]
    for key, info in RunSpec.model_fields.items()
    if info.json_schema_extra.get("suffix")
}
AXES: tuple[str, ...] = tuple(k for k, info in RunSpec.model_fields.items() if info.json_schema_extra["axis"])
_CELL_AXES = ("mode", "scope", "batch_size", "learning_rate")
_COMMON_AXES = (
    *_CELL_AXES,
    "seed",
    "model_size",
    "architecture",
    "block_size",
    "precision",
    "weights",
    "ranks",
)
"""Axes that every mode reads."""


def uses(mode: str, key: str) -> bool:
    """Whether a run of ``mode`` reads the setting ``key``."""
    return key not in AXES or key in _COMMON_AXES or key in METHODS[mode].uses


PLAN_KEYS = ("plan", "parallel_batch_size")
"""Settings that a run decides for itself where it is left to: the result is the same to rounding."""


def find_other_setting(spec: RunSpec, stored: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """The first setting, its value there and its value here, by which a stored spec is another run's.

    Its plan makes no other run. A setting that is younger than what is stored had its default.
    """
    for key, value in spec.model_dump().items():
        before = stored.get(key, RunSpec.model_fields[key].default)
        if key not in PLAN_KEYS and before != value:
            return key, before, value
    return None


def check_ranks(spec: RunSpec, ranks: int) -> None:
    """Raise UserError where so many processes cannot share a run: backprop needs a sequence for each."""
    if uses_backprop(spec.mode) and spec.batch_size < ranks:
        raise UserError(
            f"ranks: {ranks} is not allowed: mode {spec.mode} shares out the sequences of a batch, and "
            f"batch_size is {spec.batch_size}: take at most so many ranks"
        )


def _check_method(spec: RunSpec) -> None:
    for key in sorted(METHODS[spec.mode].requires):
        if getattr(spec, key) is None:
            raise UserError(
                f"{key}: missing, and mode {spec.mode} needs it: give a number of steps, 1 or more"
            )
    only = METHODS[spec.mode].only_scope
    if only and spec.scope != only:
        raise UserError(
            f"scope: {spec.scope} is not allowed for mode {spec.mode}: its phases train all of the model: "
            f"give scope {only}"
        )
    if uses(spec.mode, "query_budget_q") and spec.query_budget_q < 1:
        raise UserError(f"query_budget_q: 0 is not allowed for mode {spec.mode}: it must be 1 or more")
    if spec.shard_batch and spec.batch_size % spec.query_budget_q:
        raise UserError(
            f"shard_batch: query_budget_q {spec.query_budget_q} is not allowed: "
            f"it must divide batch_size {spec.batch_size}"
        )
    if spec.rank != 1 and spec.direction_family != "lowrank":
        raise UserError(f"rank: it belongs to direction_family lowrank, not {spec.direction_family}")
    if spec.momentum and spec.optimizer not in ("sgd", "muon"):
        raise UserError(f"momentum: it belongs to optimizers sgd and muon, not {spec.optimizer}")
    if spec.cautious and spec.optimizer != "mudamw":
        raise UserError(f"cautious: it belongs to optimizer mudamw, not {spec.optimizer}")
    if spec.weights != "fp32":
        _check_half_weights(spec)


def _check_half_weights(spec: RunSpec) -> None:
    """Weights in bf16 are for the least memory: no other arithmetic, no state beside them."""
    if spec.precision != "bf16":
        raise UserError(
            f"weights: {spec.weights} is not allowed with precision {spec.precision}: "
            "they are computed with in bf16: give precision bf16 too"
        )
    if not plain_sgd(spec):
        keys = ("momentum", "weight_decay") if spec.optimizer == "sgd" else ("optimizer",)
        given = " and ".join(f"{key} {getattr(spec, key)}" for key in keys if getattr(spec, key))
        raise UserError(
            f"weights: {spec.weights} is not allowed with {given}: "
            "they are for plain sgd, which keeps no state: take that, or weights fp32"
        )


def format_number(value: float) -> str:
    """The one spelling of a number in names: shortest mantissa, signed two-digit exponent (2.5e-04)."""
    _, digits, exponent = Decimal(repr(float(value))).normalize().as_tuple()
    mantissa = str(digits[0]) + ("." + "".join(map(str, digits[1:])) if digits[1:] else "")
    return f"{mantissa}e{exponent + len(digits) - 1:+03d}"


def format_value(value: Any) -> str:
    """Spell an axis value in a name."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return format_number(value) if isinstance(value, float) else str(value)


_NAME = re.compile(
    r"(?P<mode>[A-Za-z0-9]+)_(?P<scope>[a-z0-9]+)_bs(?P<batch_size>[^_]+)_q(?P<query_budget_q>[^_]+)"
    r"_lr(?P<learning_rate>[^_]+)(?P<rest>(?:_[^_]+)*)"
)
_PATTERN = "<mode>_<scope>_bs<batch size>_q<queries>_lr<learning rate>, e.g. ZO_reduced_bs4_q8_lr1e-05"


def parse_name(name: str, **settings: Any) -> RunSpec:
    """Read a run's name back into its spec; ``settings`` are those that no name carries.

    A name that is spelled in another way than ``RunSpec.name`` spells it is an error that says how.
    """
    match = _NAME.fullmatch(name)
    if not match:
        raise UserError(f"run name {name!r} does not parse: it must read {_PATTERN}")
    cell = match.groupdict()
    for part in filter(None, cell.pop("rest").split("_")):
        key, value = _parse_suffix(name, part)
        cell[key] = value
    try:
        spec = RunSpec.make(**settings | cell)
    except UserError as error:
        raise UserError(f"run name {name!r}: {error}") from None
    if spec.name != name:
        raise UserError(f"run name {name!r} is spelled {spec.name!r}")
    return spec


def _parse_suffix(name: str, part: str) -> tuple[str, str]:
    fitting = [key for key, suffix in SUFFIXES.items() if part.startswith(suffix) and part != suffix]
    if not fitting:
        letters = re.match("[A-Za-z]*", part)[0]
        raise UserError(f"run name {name!r}: unknown suffix {part!r}: {suggest(letters, SUFFIXES.values())}")
    key = max(fitting, key=lambda key: len(SUFFIXES[key]))
    return key, part.removeprefix(SUFFIXES[key])


def dataset_spec(spec: RunSpec) -> DatasetSpec:
    """The token cache that a run reads."""
    return DatasetSpec(
        dataset=spec.dataset,
        revision=spec.dataset_revision,
        max_samples=spec.max_samples,
        tokenizer=spec.tokenizer,
        vocab_size=spec.vocab_size,
        text_column=spec.text_column,
    )


def guide_dataset_spec(spec: RunSpec) -> DatasetSpec:
    """The cache of the backprop batches: another corpus is cut by the run's own tokenizer."""
    own = dataset_spec(spec)
    if spec.bp_dataset is None:
        return own
    trained = own if spec.tokenizer == "bpe" else None
    return replace(own, dataset=spec.bp_dataset, revision=None, text_column=None, tokenizer_of=trained)
