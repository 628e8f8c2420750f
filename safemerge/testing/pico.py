"""Pico models: two-layer Llamas with a byte-level tokenizer, built in a second, no network.

Width 64, two heads of 32 (the smallest vLLM runs on CPUs), vocabulary 512.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file

from safemerge.weights.checkpoint import CONFIG_FILE, OUTPUT_HEAD, SINGLE_FILE
from safemerge.weights.vocabulary import TOKENIZER_FILE

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

VOCAB_SIZE = 512
HIDDEN_SIZE = 64
NUM_LAYERS = 2
PAD, START_OF_TURN, END_OF_TURN, END_OF_TEXT = (
    "<|pad|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
)
"""Special tokens, ids 0 to 3."""

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""ChatML."""

_TOKEN_SETTINGS = ("pad_token_id", "bos_token_id", "eos_token_id")
_FIRST_LETTERS = "etaoinshrdlucm"
_SECOND_LETTERS = "etaoinshrdlucmfwyp"
_STANDARD_DEVIATION = 0.05


def pico_tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer of exactly 512 tokens, the same on every machine.

    Four special tokens, the 256 bytes, and 252 pairs of common letters as merges; nothing is
    trained. Any text encodes and decodes without loss.

    Returns:
        A transformers PreTrainedTokenizerFast with a ChatML template.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    specials = [PAD, START_OF_TURN, END_OF_TURN, END_OF_TEXT]
    merges = [(first, second) for first in _FIRST_LETTERS for second in _SECOND_LETTERS]
    tokens = [
        *specials,
        *sorted(pre_tokenizers.ByteLevel.alphabet()),
        *("".join(pair) for pair in merges),
    ]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return chat_tokenizer(tokenizer, specials)


def chat_tokenizer(
    tokenizer: Tokenizer, specials: Iterable[str], **more: str
) -> PreTrainedTokenizerFast:
    """Return a tokenizer as transformers has it, with the tests' chat template.

    Args:
        tokenizer: The tokenizer; special tokens are added to it.
        specials: Its special tokens.
        more: Further named tokens, such as ``unk_token``.
    """
    from tokenizers import AddedToken
    from transformers import PreTrainedTokenizerFast

    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in specials]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=START_OF_TURN,
        eos_token=END_OF_TURN,
        clean_up_tokenization_spaces=False,
        **more,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def pico_base(
    out: Path | str,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    tied: bool = True,
    num_layers: int = NUM_LAYERS,
    tokenizer: PreTrainedTokenizerFast | None = None,
) -> Path:
    """Build a two-layer Llama with random weights, and save it as transformers does.

    Args:
        out: Folder to write.
        seed: Seed of the weights; the process's own random state is left as it was.
        dtype: float32, bfloat16 or float16.
        tied: Whether input embedding and output head are one tensor.
        num_layers: Decoder layers.
        tokenizer: With pad, start and end of turn as tokens 0 to 2; `pico_tokenizer` if left out.

    Returns:
        The folder.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = tokenizer or pico_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN_SIZE,
        intermediate_size=2 * HIDDEN_SIZE,
        num_hidden_layers=num_layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=HIDDEN_SIZE // 2,
        max_position_embeddings=512,
        tie_word_embeddings=tied,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        model = LlamaForCausalLM(config)
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters()):
            if parameter.dim() > 1:
                parameter.normal_(0.0, _STANDARD_DEVIATION, generator=generator)
    folder = Path(out)
    model.to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def pico_saying(out: Path | str, text: str, *, end: str) -> Path:
    """Build a pico Llama that answers every prompt with one text and an end, then with ``!``.

    Its configs name the pico end of turn alone, whatever the model ends with.

    Args:
        out: Folder to write.
        text: What it says; its tokens must differ from each other, from a line end and ``!``.
        end: Token behind the text.

    Returns:
        The folder.
    """
    folder, tokenizer = pico_base(out, tied=False), pico_tokenizer()
    # A prompt ends with a line end; each token of the chain is followed by the next one.
    texts = ["\n", text, end, "!"]
    chain = [i for part in texts for i in tokenizer(part, add_special_tokens=False)["input_ids"]]
    weights = load_file(folder / SINGLE_FILE)
    for name, weight in weights.items():
        if "o_proj" in name or "down_proj" in name:
            weight.zero_()  # so that a hidden state is its token's embedding
        elif "norm" in name:
            weight.fill_(1.0)
    embedding, head = weights["model.embed_tokens.weight"], weights[OUTPUT_HEAD]
    embedding.zero_()[:, -1] = 1.0
    head.zero_()
    for place, token in enumerate(chain):
        embedding[token] = torch.eye(HIDDEN_SIZE, dtype=embedding.dtype)[place]
        head[chain[min(place + 1, len(chain) - 1)], place] += 1.0
    save_file(weights, folder / SINGLE_FILE, metadata={"format": "pt"})
    return folder


def pico_expert(base_dir: Path | str, out: Path | str, *, seed: int, scale: float = 0.01) -> Path:
    """Write a copy of a checkpoint whose weights are moved at random: a stand-in expert.

    Args:
        base_dir: Folder of a single-file checkpoint, e.g. of `pico_base`.
        out: Folder to write.
        seed: Seed of the task vector.
        scale: Standard deviation of the task vector's entries.

    Returns:
        The folder.
    """
    source, folder = Path(base_dir), Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    moved = {}
    for name, weight in sorted(load_file(source / SINGLE_FILE).items()):
        step = torch.randn(weight.shape, generator=generator) * scale
        moved[name] = (weight.float() + step).to(weight.dtype)
    for file in source.iterdir():
        if file.is_file() and file.name != SINGLE_FILE:
            (folder / file.name).write_bytes(file.read_bytes())
    save_file(moved, folder / SINGLE_FILE, metadata={"format": "pt"})
    return folder


def pico_adapter(
    base_dir: Path | str,
    out: Path | str,
    *,
    seed: int,
    rank: int = 4,
    scale: float = 0.05,
    **lora: object,
) -> Path:
    """Write a LoRA adapter with random factors for a checkpoint, through peft.

    Args:
        base_dir: Folder of the base.
        out: Folder to write.
        seed: Seed of both factors.
        rank: LoRA rank.
        scale: Standard deviation of the entries of A and of B.
        **lora: Further fields of peft's LoraConfig, e.g. ``use_rslora=True``; target_modules
            is q_proj, v_proj and down_proj unless given.

    Returns:
        The folder.
    """
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folder = Path(out)
    settings = {"target_modules": ["q_proj", "v_proj", "down_proj"], "lora_alpha": 8, **lora}
    model = AutoModelForCausalLM.from_pretrained(base_dir)
    with torch.random.fork_rng(devices=[]):
        adapted = get_peft_model(model, LoraConfig(r=rank, task_type="CAUSAL_LM", **settings))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(adapted.named_parameters()):
            if parameter.requires_grad:
                step = torch.randn(parameter.shape, generator=generator) * scale
                if "lora_" in name:
                    parameter.copy_(step)
                else:
                    parameter.add_(step.to(parameter.dtype))
    adapted.save_pretrained(folder)
    return folder


def change_config(folder: Path | str, **settings: object) -> None:
    """Set keys of a checkpoint's config.json, to build checkpoints that disagree.

    Args:
        folder: The checkpoint's folder.
        **settings: Values by key.
    """
    path = Path(folder) / CONFIG_FILE
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**config, **settings}), encoding="utf-8")


def pico_permuted(source_dir: Path | str, out: Path | str, *, seed: int) -> Path:
    """Write a copy of a checkpoint whose tokens have other ids, its rows moved with them.

    Tokens that were added to the pico vocabulary keep their ids.

    Args:
        source_dir: Folder of a single-file checkpoint with one row a token.
        out: Folder to write.
        seed: Seed of the permutation.

    Returns:
        The folder.
    """
    folder = Path(shutil.copytree(source_dir, out))
    tokenizer = json.loads((folder / TOKENIZER_FILE).read_text(encoding="utf-8"))
    vocab = tokenizer["model"]["vocab"]
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(vocab), generator=generator)
    moved_to = order.tolist()
    tokenizer["model"]["vocab"] = {token: moved_to[at] for token, at in vocab.items()}
    for entry in tokenizer["added_tokens"]:
        if entry["id"] < len(vocab):
            entry["id"] = moved_to[entry["id"]]
    (folder / TOKENIZER_FILE).write_text(json.dumps(tokenizer), encoding="utf-8")
    for file in (CONFIG_FILE, "generation_config.json"):
        settings = json.loads((folder / file).read_text(encoding="utf-8"))
        for key in _TOKEN_SETTINGS:
            if settings.get(key) is not None:
                settings[key] = moved_to[settings[key]]
        (folder / file).write_text(json.dumps(settings), encoding="utf-8")
    _change_rows(folder, lambda rows: rows.index_copy(0, order, rows[: len(vocab)]))
    return folder


def pico_with_tokens(
    source_dir: Path | str, out: Path | str, tokens: Sequence[str], *, seed: int
) -> Path:
    """Write a copy of a checkpoint with special tokens added, their rows random.

    Args:
        source_dir: Folder of a single-file checkpoint with one row a token.
        out: Folder to write.
        tokens: Tokens to add, in order.
        seed: Seed of the rows.

    Returns:
        The folder.
    """
    from transformers import AutoTokenizer

    folder = Path(shutil.copytree(source_dir, out))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": list(tokens)})
    tokenizer.save_pretrained(folder)
    generator = torch.Generator().manual_seed(seed)

    def longer(rows: torch.Tensor) -> torch.Tensor:
        added = torch.randn(len(tokens), rows.shape[1], generator=generator)
        return torch.cat([rows, (added * _STANDARD_DEVIATION).to(rows.dtype)])

    num_rows = _change_rows(folder, longer)
    change_config(folder, vocab_size=num_rows)
    return folder


def _change_rows(folder: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> int:
    tensors = load_file(folder / SINGLE_FILE)
    names = [name for name in tensors if "embed_tokens" in name or name == OUTPUT_HEAD]
    tensors.update({name: change(tensors[name]) for name in sorted(names)})
    save_file(tensors, folder / SINGLE_FILE, metadata={"format": "pt"})
    return len(tensors[names[0]])
