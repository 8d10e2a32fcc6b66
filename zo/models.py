"""Models from scratch: seeded initialisation, and the scopes that a run trains.

transformers takes seconds to import, so only the functions that need it import it.
"""

import copy

import torch
from torch import nn

from zo.engine.noise import mix
from zo.errors import UserError
from zo.sizes import Scope, Shape, check_block, model_shape, parse_scope

# -- building -------------------------------------------------------------------------------------

CAUSAL = "zo_causal"
"""SDPA where every token sees all before it: an ``attention_mask`` has no effect.

transformers looks for padding and packed sequences before each forward pass, which waits for the GPU and at
100k parameters takes a CPU a tenth of the pass. Blocks of tokens have neither, and it makes no mask for an
attention function that it does not know.
"""


def _register_attention() -> None:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(CAUSAL, sdpa_attention_forward)


def model_config(size: str, architecture: str, vocab_size: int):
    """Make the transformers config: no dropout, no cache, no special token ids, tied head, CAUSAL."""
    shape = model_shape(size, architecture)
    _register_attention()
    common = {
        "vocab_size": vocab_size,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        "use_cache": False,
        "tie_word_embeddings": True,
        "attn_implementation": CAUSAL,
    }
    return (_gpt2_config if architecture == "gpt2" else _llama_config)(shape, common)


def _gpt2_config(shape: Shape, common: dict):
    from transformers.models.gpt2.configuration_gpt2 import GPT2Config

    return GPT2Config(
        n_embd=shape.width,
        n_layer=shape.layers,
        n_head=shape.heads,
        n_inner=shape.inner,
        n_positions=shape.positions,
        activation_function="gelu_pytorch_tanh",  # GPT-2's own GELU ("gelu_new") as one fused kernel
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        summary_first_dropout=0.0,
        **common,
    )


def _llama_config(shape: Shape, common: dict):
    from transformers.models.llama.configuration_llama import LlamaConfig

    return LlamaConfig(
        hidden_size=shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=shape.inner,
        max_position_embeddings=shape.positions,
        attention_dropout=0.0,
        **common,
    )


def _model_class(architecture: str) -> type:
    if architecture == "gpt2":
        from transformers.models.gpt2.modeling_gpt2 import GPT2LMHeadModel

        return GPT2LMHeadModel
    from transformers.models.llama.modeling_llama import LlamaForCausalLM

    return LlamaForCausalLM


def build_model(
    size: str,
    architecture: str,
    vocab_size: int,
    seed: int,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    matrices_alone: bool = False,
    gradient_checkpointing: bool = False,
) -> nn.Module:
    """Initialise a causal language model from ``seed`` alone; no global generator is moved.

    The weights are drawn on the CPU in fp32, then cast and moved: the same for every device, and for
    another dtype up to its rounding; ``matrices_alone`` leaves norms' weights and biases in fp32. The model
    stays in train(): transformers checkpoints activations only there, and with every dropout at 0 train()
    and eval() are the same function.
    """
    config = model_config(size, architecture, vocab_size)
    seed = seed if seed < 2**32 else mix(seed)  # the generator reads 32 bits
    model = _initialise(_model_class(architecture), config, seed)
    model.loss_type = "ForCausalLM"  # what GPT-2 chooses by itself when given labels, after a warning
    _cast_parameters(model, dtype, least_dimensions=2 if matrices_alone else 0)
    if gradient_checkpointing:
        checkpoint_activations(model)
    return model.to(device).train()


def _initialise(model_class: type, config, seed: int) -> nn.Module:
    # Not torch.manual_seed: that would seed the accelerators' generators too, and fork_rng(devices=[])
    # puts back the CPU's alone.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return model_class(config)


@torch.no_grad()
def redraw_block(model: nn.Module, block: int, seed: int) -> None:
    """Give a block, by its index from 0, the random weights that ``build_model`` would draw from ``seed``.

    They are those of a model with a vocabulary of 1, drawn as at the start: on the CPU, in fp32.
    """
    config = copy.deepcopy(model.config)
    config.vocab_size, config.dtype = 1, torch.float32
    drawn = _find_blocks(_initialise(type(model), config, seed))[block]
    for parameter, weights in zip(_find_blocks(model)[block].parameters(), drawn.parameters(), strict=True):
        parameter.copy_(weights)


def checkpoint_activations(model: nn.Module) -> None:
    """Let backprop keep each block's input alone and compute the rest again (gradient checkpointing)."""
    # Nothing random is recomputed, so no generator state is worth saving.
    model.activation_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})


def _cast_parameters(model: nn.Module, dtype: torch.dtype, least_dimensions: int) -> None:
    """Cast the parameters in place (ties survive) but no buffer: Llama's rotary frequencies stay fp32.

    ``model.to(dtype)`` would round them as well: in bf16 by up to 0.4 %, which turns a pair by up to
    0.4 rad at position 1000.
    """
    for parameter in model.parameters():
        if parameter.ndim >= least_dimensions:
            parameter.data = parameter.data.to(dtype)
    model.config.dtype = dtype


def count_parameters(size: str, architecture: str, vocab_size: int) -> int:
    """Count the parameters, a tied head once; on the meta device, so without their memory."""
    config = model_config(size, architecture, vocab_size)
    with torch.device("meta"):
        model = _model_class(architecture)(config)
    return sum(parameter.numel() for parameter in model.parameters())


# -- scopes ---------------------------------------------------------------------------------------


def select_scope(model: nn.Module, scope: str) -> list[tuple[str, nn.Parameter]]:
    """Make exactly the scope's parameters require gradients; return them in ``named_parameters`` order.

    A scope that trains the head and not the embedding unties the two first, so the model changes; its
    function does not. A tied head in ``full`` is one parameter, listed once under the embedding's name.
    """
    parsed = parse_scope(scope)
    check_block(parsed, len(_find_blocks(model)))
    if parsed.kind in ("reduced", "head"):
        untie_head(model)
    chosen = {id(parameter) for parameter in _scope_parameters(model, parsed)}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in chosen)
    return [(name, parameter) for name, parameter in model.named_parameters() if id(parameter) in chosen]


def _scope_parameters(model: nn.Module, scope: Scope) -> list[nn.Parameter]:
    if scope.kind == "embedding":  # all that no block has: a tied head, positions and the last norm too
        inside = {id(parameter) for parameter in _find_blocks(model).parameters()}
        return [parameter for parameter in model.parameters() if id(parameter) not in inside]
    return [parameter for module in _scope_modules(model, scope) for parameter in module.parameters()]


def _scope_modules(model: nn.Module, scope: Scope) -> list[nn.Module]:
    match scope.kind:
        case "full":
            return [model]
        case "head":
            return [model.get_output_embeddings()]
        case "norms":
            return [module for module in model.modules() if _is_norm(module)]
        case "block":
            return [_find_blocks(model)[scope.block]]
    last = _find_blocks(model)[-1]
    return [_norm_before_mlp(last), *_mlp_modules(last), model.get_output_embeddings()]


def untie_head(model: nn.Module) -> None:
    """Give a tied head its own copy of the embedding's weight, for good: saving and loading keep it."""
    head = model.get_output_embeddings()
    if head.weight is not model.get_input_embeddings().weight:
        return
    head.weight = nn.Parameter(head.weight.detach().clone())
    model.config.tie_word_embeddings = False
    model.all_tied_weights_keys = {}  # transformers' cached copy of what the config said


# Structure instead of architecture names: this much is enough for GPT-2, Llama, OPT, GPT-NeoX and Qwen3.
_MLP_NAMES = ("mlp", "fc1", "fc2")  # OPT's block has no MLP module, only its two layers


def _find_blocks(model: nn.Module) -> nn.ModuleList:
    """Find the transformer blocks: the outermost ModuleList with one entry per layer."""
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == model.config.num_hidden_layers:
            return module
    raise UserError(f"cannot find the blocks of {type(model).__name__}")


def _is_norm(module: nn.Module) -> bool:
    return type(module).__name__.endswith("Norm")


def _mlp_modules(block: nn.Module) -> list[nn.Module]:
    modules = [child for name, child in block.named_children() if name in _MLP_NAMES]
    if not modules:
        raise UserError(f"cannot find the MLP of {type(block).__name__}")
    return modules


def _norm_before_mlp(block: nn.Module) -> nn.Module:
    """Find the second of the block's two norms; with more than two (Gemma 2) it would be a guess."""
    norms = [child for child in block.children() if _is_norm(child)]
    if len(norms) != 2:
        raise UserError(f"cannot tell which norm of {type(block).__name__} ({len(norms)}) precedes its MLP")
    return norms[1]


def parameter_roles(model: nn.Module, named: list[tuple[str, nn.Parameter]]) -> dict[str, str]:
    """Map each name to ``embedding`` (token, position, a tied head), ``head``, ``vector`` or ``hidden``.

    ``vector`` is anything below two dimensions: norm weights and biases, a head's bias included.
    """
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    head = model.get_output_embeddings().weight

    def role(parameter: nn.Parameter) -> str:
        if id(parameter) in embeddings:
            return "embedding"
        if parameter.ndim < 2:
            return "vector"
        return "head" if parameter is head else "hidden"

    return {name: role(parameter) for name, parameter in named}
