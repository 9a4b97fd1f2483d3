"""What the base model must be able to do before fine-tuning it can show anything.

Two gates, both on fresh documents: it knows when a document does not hold an answer (yes/no questions), and it answers
what the document does hold. The other figures say what there is to forget.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from tasks.lab import corpus, documents, world

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

YES_NO_GATE = 0.90
RECALL_GATE = 0.95


class Probe(NamedTuple):
    """A prompt and what its answer must contain (and must not)."""

    prompt: str
    expected: str
    forbidden: tuple[str, ...] = ()

    def passed(self, answer: str) -> bool:
        """Whether the answer has the expected word and no forbidden one."""
        words = answer.strip(" .").split()
        return self.expected in words and not set(self.forbidden) & set(words)


def yes_no_probes(kind: world.Kind, absence: str | None, n: int, seed: int) -> list[Probe]:
    """Questions whether a document states something.

    Args:
        absence: As in `Document.questions`.
    """
    rng = random.Random(f"{kind.name}-{absence}-{seed}")
    probes: list[Probe] = []
    for _ in range(n):
        document, subject, relation = documents.draw_question(kind, rng, absence)
        question = rng.choice(corpus.YES_NO_FORMS).format(clause=relation.clause.format(s=subject))
        probes.append(Probe(corpus.user_message(document.text, question), "No" if absence else "Yes"))
    return probes


def recall_probes(kind: world.Kind, n: int, seed: int, *, rivals: bool) -> list[Probe]:
    """Questions that the document answers.

    Args:
        rivals: Whether it states the same relation of another subject as well.
    """
    rng = random.Random(f"{kind.name}-recall-{seed}")
    probes: list[Probe] = []
    while len(probes) < n:
        document = documents.make_document(kind, rng, "mixed" if rivals else rng.choice(["single", "mixed"]))
        subject, relation = rng.choice(document.questions(None))
        if (sum(fact.relation == relation for fact in document.facts) > 1) != rivals:
            continue
        value = document.value_of(subject, relation)
        assert value is not None  # that is what questions(None) returns
        question = rng.choice(relation.asked).format(s=subject)
        others = tuple({f.value for f in document.facts} - {value})
        probes.append(Probe(corpus.user_message(document.text, question), value, others))
    return probes


def closed_book_probes(facts: list[world.HeartFact], n: int, seed: int) -> list[Probe]:
    """Facts asked in a form that pre-training never used for them."""
    rng = random.Random(seed)
    drawn = rng.sample(facts, min(n, len(facts)))
    return [Probe(rng.choice(fact.questions(trained=False)), fact.value) for fact in drawn]


def sum_probes(n: int, seed: int) -> list[Probe]:
    """Sums of pairs kept out of pre-training."""
    rng = random.Random(seed)
    return [
        Probe(rng.choice(corpus.SUM_FORMS).format(a=a, b=b, s=rng.choice(world.PEOPLE.subjects)), str(a + b))
        for a, b in rng.sample(corpus.held_out_sums(), n)
    ]


def measure(answer: Callable[[list[str], int], list[str]], *, n: int = 200, seed: int = 0) -> dict[str, float]:
    """The share of each sort of probe that the model passes.

    Args:
        answer: Answers user messages greedily; its second parameter limits the tokens of an answer.
    """
    sorts: dict[str, list[Probe]] = {
        f"yes_no/{kind.name}/{absence or 'stated'}": yes_no_probes(kind, absence, n, seed)
        for kind in world.KINDS.values()
        for absence in (None, "absent", "distractor")
    }
    for kind in world.KINDS.values():
        sorts[f"recall/{kind.name}"] = recall_probes(kind, n, seed, rivals=False)
        sorts[f"recall_rivals/{kind.name}"] = recall_probes(kind, n, seed, rivals=True)
    sorts |= {
        "facts": closed_book_probes(world.COUNTRY_FACTS, n, seed),
        "creatures": closed_book_probes(world.CREATURE_FACTS, n, seed),
        "sums": sum_probes(n, seed),
    }
    found = {}
    for name, probes in sorts.items():
        answers = answer([p.prompt for p in probes], 3 if name.startswith("yes_no") else 60)
        found[name] = sum(p.passed(a) for p, a in zip(probes, answers, strict=True)) / len(probes)
    return found


def yes_no_accuracy(found: dict[str, float]) -> float:
    """Balanced accuracy on yes/no probes of people: half are stated, a quarter of nobody, a quarter of another one."""
    stated, absent, distractor = (found[f"yes_no/people/{sort}"] for sort in ("stated", "absent", "distractor"))
    return (stated + (absent + distractor) / 2) / 2


def recall(found: dict[str, float]) -> float:
    """Recall on answerable questions about people: for half of them the same relation is stated of another subject."""
    return (found["recall/people"] + found["recall_rivals/people"]) / 2


def gated(found: dict[str, float]) -> dict[str, tuple[float, float]]:
    """What decides whether a model is shipped, each figure with its gate."""
    return {"yes/no": (yes_no_accuracy(found), YES_NO_GATE), "recall": (recall(found), RECALL_GATE)}


def answerer(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> Callable[[list[str], int], list[str]]:
    """Greedy generation, batched by length, without the pipeline around it."""
    import torch

    def answer(prompts: list[str], max_new_tokens: int) -> list[str]:
        chats = [[{"role": "user", "content": p}] for p in prompts]
        texts = tokenizer.apply_chat_template(chats, tokenize=False, add_generation_prompt=True)
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        answers = [""] * len(texts)
        for start in range(0, len(order), 100):
            rows = order[start : start + 100]
            batch = tokenizer([texts[i] for i in rows], return_tensors="pt", padding=True, add_special_tokens=False)
            batch.pop("token_type_ids", None)
            with torch.inference_mode():
                out = model.generate(**batch, max_new_tokens=max_new_tokens, do_sample=False)
            new = tokenizer.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
            for i, text in zip(rows, new, strict=True):
                answers[i] = text.strip()
        return answers

    return answer
