"""Train the lab's base model from nothing, on two CPU cores.

    ssr lab build            # takes about half an hour; after an interruption the same command resumes

`DECISIONS.md` says why the recipe is as it is. Not covered: fine-tuning (`tasks/train`), which uses TRL.
"""

from __future__ import annotations

import itertools
import json
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tasks.lab.corpus import Turn
from tasks.lab.tokenizer import ASSISTANT, END, USER

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PretrainConfig:
    """Everything that decides the weights, apart from floating-point order.

    Attributes:
        first_horizon: Steps of the first stage's schedule: constant, then falling to nothing over `decay_share`.
        restarts: (step, learning rate) pairs. From each step the rate falls from this value to zero, until the next
            restart or the end: sums are learned after everything else, and need a learning rate for it.
        n_rows: Packed rows a step; a row holds `row_tokens` tokens of several chats that do not see each other.
        prompt_weight: Loss weight of prompt tokens; answers weigh 1, the word that decides one key_weight.
        look_back: Heads of the first layer that start by attending to the token so many places before.
        chunk_steps: Data is drawn in chunks of so many steps, each from its own seed: what makes a resume exact.
    """

    seed: int = 7
    n_steps: int = 4300
    first_horizon: int = 3600
    restarts: tuple[tuple[int, float], ...] = ((3400, 2e-3), (4000, 1.5e-3))
    n_rows: int = 28
    row_tokens: int = 192
    learning_rate: float = 3e-3
    warmup_steps: int = 100
    decay_share: float = 0.4
    weight_decay: float = 0.05
    prompt_weight: float = 0.1
    key_weight: float = 3.0
    chunk_steps: int = 100
    hidden_size: int = 192
    n_layers: int = 5
    n_heads: int = 3
    intermediate_size: int = 512
    look_back: tuple[int, ...] = (1, 2)


def build_model(config: PretrainConfig, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A freshly initialised Llama of about two million parameters."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(config.seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), tie_word_embeddings=True, max_position_embeddings=4096,
            hidden_size=config.hidden_size, intermediate_size=config.intermediate_size,
            num_hidden_layers=config.n_layers, num_attention_heads=config.n_heads, num_key_value_heads=config.n_heads,
            pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, bos_token_id=None,
        )
    )  # fmt: skip
    _look_back(model, config.look_back)
    return model


def _look_back(model: LlamaForCausalLM, offsets: tuple[int, ...]) -> None:
    """Start the first heads of the first layer as ones that attend to the token so many places before.

    Every embedding gets the same component, which the head's queries and keys read; RoPE then makes their product
    depend on the distance alone, and the sum over the fastest rotations peaks at the wanted one. Large models grow such
    heads by themselves; this one does not within its budget, and without them it never looks a name up.
    """
    import torch

    n_rotations, amplitude = 5, 7.0  # the wanted token gets over 0.9 of the attention, wherever the others are
    config = model.config
    size = config.hidden_size // config.num_attention_heads
    embedding, attention = model.model.embed_tokens.weight, model.model.layers[0].self_attn
    frequencies = model.model.rotary_emb.inv_freq[:n_rotations]
    with torch.no_grad():
        shared = torch.full((config.hidden_size,), config.hidden_size**-0.5)
        embedding += embedding.norm(dim=1).mean() * shared
        seen = (embedding / embedding.pow(2).mean(1, keepdim=True).sqrt()) @ shared
        for head, offset in enumerate(offsets):
            query, key = torch.zeros(size), torch.zeros(size)
            key[:n_rotations] = amplitude
            query[:n_rotations] = amplitude * torch.cos(frequencies * offset)
            query[size // 2 : size // 2 + n_rotations] = -amplitude * torch.sin(frequencies * offset)
            rows = slice(head * size, (head + 1) * size)
            attention.q_proj.weight[rows] += torch.outer(query, shared) / seen.mean()
            attention.k_proj.weight[rows] += torch.outer(key, shared) / seen.mean()


ChatSource = Callable[[int, int], Iterator[list[Turn]]]  # from (seed, step)


class Chunk(NamedTuple):
    """Packed training rows, each array (n_steps * n_rows, row_tokens).

    Attributes:
        segments: Which chat of its row a token belongs to; 0 is padding.
        weights: The loss weight of predicting this token.
    """

    ids: np.ndarray
    segments: np.ndarray
    positions: np.ndarray
    weights: np.ndarray


def _packed(source: Iterator[list[Turn]], config: PretrainConfig, tokenizer: PreTrainedTokenizerFast) -> Chunk:
    """Draw chats until the rows of one chunk are full. Chats longer than a row are skipped."""
    n_rows, n_columns = config.chunk_steps * config.n_rows, config.row_tokens
    shape = (n_rows, n_columns)
    chunk = Chunk(
        np.full(shape, tokenizer.pad_token_id, np.int64), np.zeros(shape, np.int16), np.zeros(shape, np.int64),
        np.zeros(shape, np.float32),
    )  # fmt: skip
    fill, n_chats = np.zeros(n_rows, np.int64), np.zeros(n_rows, np.int64)
    opened, n_open = 0, 32  # rows still being filled: first fit among a few keeps them 97 % full
    window: list[int] = []
    for ids, weights in _tokenized(source, config, tokenizer):
        n = len(ids)
        row = next((r for r in window if fill[r] + n <= n_columns), None)
        if row is None:
            if n > n_columns:
                continue
            if opened == n_rows:
                break
            row, opened = opened, opened + 1
            window = [*window, row][-n_open:]
        at = fill[row]
        n_chats[row] += 1
        chunk.ids[row, at : at + n] = ids
        chunk.weights[row, at : at + n] = weights
        chunk.segments[row, at : at + n] = n_chats[row]
        chunk.positions[row, at : at + n] = np.arange(n)
        fill[row] += n
    return chunk


def _tokenized(
    source: Iterator[list[Turn]], config: PretrainConfig, tokenizer: PreTrainedTokenizerFast
) -> Iterator[tuple[list[int], list[float]]]:
    """The token ids of each chat, with their weights in the loss."""
    backend = tokenizer.backend_tokenizer
    user_id, assistant_id, end_id = tokenizer.convert_tokens_to_ids([USER, ASSISTANT, END])
    while batch := list(itertools.islice(source, 2048)):
        texts = [text for chat in batch for turn in chat for text in (turn.user, turn.assistant)]
        encoded = iter(backend.encode_batch_fast(texts, add_special_tokens=False))
        for chat in batch:
            ids: list[int] = []
            weights: list[float] = []
            for turn in chat:
                user, answer = next(encoded).ids, next(encoded).ids
                ids += [user_id, *user, end_id, assistant_id, *answer, end_id]
                weights += [0.0] + [config.prompt_weight] * (len(user) + 1) + [0.0]
                # Every word of the world is one token; as part of a text it follows a space.
                key = None if turn.key is None else backend.token_to_id(f"Ġ{turn.key}")
                weights += [config.key_weight if token == key else 1.0 for token in answer] + [1.0]
            yield ids, weights


def pretrain(
    workdir: Path, *, config: PretrainConfig, tokenizer: PreTrainedTokenizerFast, source: ChatSource,
    on_progress: Callable[[int, float, float], None], compile_model: bool,
) -> LlamaForCausalLM:  # fmt: skip
    """Train in `workdir`, or resume there; returns the trained model in float32.

    Args:
        workdir: Holds `checkpoint.pt`, replaced atomically after every chunk, and `log.jsonl`.
        on_progress: Called after each chunk with (step, mean loss of its answers, tokens per second).
    """
    import torch

    model = build_model(config, tokenizer)
    optimizers = _optimizers(model, config)
    workdir.mkdir(parents=True, exist_ok=True)
    step = _restore(workdir, config, model, optimizers)
    forward = torch.compile(model) if compile_model else model
    while step < config.n_steps:
        started = time.monotonic()
        chunk = _packed(source(config.seed * 1_000_003 + step, step), config, tokenizer)
        order = np.random.default_rng(step).permutation(len(chunk.ids))
        losses = []
        n_steps = min(config.chunk_steps, config.n_steps - step)
        for i in range(n_steps):
            rows = order[i * config.n_rows : (i + 1) * config.n_rows]
            for group in (g for optimizer in optimizers for g in optimizer.param_groups):
                group["lr"] = _learning_rate(step, config)
            losses.append(_train_step(forward, model, optimizers, chunk, rows))
            step += 1
        seconds = time.monotonic() - started
        tokens_per_second = int((chunk.segments > 0).sum()) / seconds
        _save(workdir, config, model, optimizers, step)
        loss = float(np.mean(losses))
        with (workdir / "log.jsonl").open("a") as log:
            log.write(json.dumps({"step": step, "loss": loss, "tokens_per_second": tokens_per_second}) + "\n")
        on_progress(step, loss, tokens_per_second)
    return model


def _train_step(
    forward: Callable[..., Any], model: LlamaForCausalLM, optimizers: list[torch.optim.Optimizer], chunk: Chunk,
    rows: np.ndarray,
) -> float:  # fmt: skip
    import torch
    import torch.nn.functional as F

    ids, segments, positions, weights = (torch.from_numpy(part[rows]) for part in chunk)
    same_chat = segments.unsqueeze(2) == segments.unsqueeze(1)
    mask = (same_chat & torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).tril()).unsqueeze(1)
    logits = forward(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
    # A chat's first token has weight 0, so no chat is asked to predict the next one's beginning.
    loss_by_token = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none")
    target_weights = weights[:, 1:].flatten()
    loss = (loss_by_token * target_weights).sum() / target_weights.sum()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    is_answer = target_weights >= 1.0
    return float(loss_by_token.detach()[is_answer].mean())


def _learning_rate(step: int, config: PretrainConfig) -> float:
    """Linear warm-up, constant, linear decay until the first restart; then a decay to nothing after each restart."""
    ends = [*(start for start, _ in config.restarts[1:]), config.n_steps]
    for (start, peak), end in reversed(list(zip(config.restarts, ends, strict=True))):
        if step >= start:
            return peak * (end - step) / (end - start)
    to_go = (config.first_horizon - step) / (config.decay_share * config.first_horizon)
    return config.learning_rate * min(1.0, (step + 1) / config.warmup_steps, to_go)


def _optimizers(model: LlamaForCausalLM, config: PretrainConfig) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, AdamW for the embedding and the norms."""
    import torch

    hidden = [p for name, p in model.named_parameters() if p.dim() == 2 and "embed" not in name]
    chosen = {id(p) for p in hidden}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    adamw = torch.optim.AdamW(
        rest, lr=config.learning_rate, betas=(0.9, 0.98), weight_decay=config.weight_decay, fused=True
    )
    muon = torch.optim.Muon(
        hidden, lr=config.learning_rate, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw"
    )
    return [adamw, muon]


def _save(
    workdir: Path, config: PretrainConfig, model: LlamaForCausalLM, optimizers: list[torch.optim.Optimizer], step: int
) -> None:
    import torch

    kept = [optimizer.state_dict() for optimizer in optimizers]
    state = {"step": step, "config": asdict(config), "model": model.state_dict(), "optimizers": kept}
    torch.save(state, workdir / "checkpoint.tmp")
    (workdir / "checkpoint.tmp").replace(workdir / "checkpoint.pt")


def _restore(
    workdir: Path, config: PretrainConfig, model: LlamaForCausalLM, optimizers: list[torch.optim.Optimizer]
) -> int:
    """Load the last checkpoint of the same config, if there is one; returns the step to resume from."""
    import torch

    path = workdir / "checkpoint.pt"
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    if state["config"] != asdict(config):
        logger.warning("%s was made with another config: starting over", path)
        return 0
    model.load_state_dict(state["model"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    logger.info("going on from step %d of %d", state["step"], config.n_steps)
    return int(state["step"])
