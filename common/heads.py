"""One shared encoder with a head for each task: its own layer norm, its own attention, its own classifier."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from common.batching import token_budget_batches
from common.config import HEAD_KINDS
from common.data import MultiTaskDataset, pad_states
from common.devices import autocast, resolve_batch
from common.dropout import Dropout
from common.embedding import Encoder, evaluating, pool
from common.errors import UserError
from common.files import atomic_folder, write_json
from common.folders import HEADS, TASKS, model_folder
from common.freezing import frozen_stages, is_frozen
from common.load import load_encoder
from common.lowered import lowered
from common.rows import LabelledRows

DROPOUT = 0.1
SHARPNESS = 5.0  # at the rates of fine-tuning queries stay small: with a factor of 1 attention stayed even
Found = TypeVar("Found")


class AttentionPooling(nn.Module):
    """Token states to one vector, by what learned queries find in them.

    Multi-head attention (Vaswani et al. 2017, section 3.2.2) with one query an attention head, learned rather than
    computed, and the states themselves as keys, normed, and as values: a query is asked of whole states, and weighs its
    attention head's part of them. Each task asks its own questions, and so looks at other words. They begin at zero:
    all words count alike, and the vector is the mean.
    """

    def __init__(self, dim: int, attention_heads: int) -> None:
        super().__init__()
        if dim % attention_heads:
            raise UserError(f"a width of {dim} is no multiple of {attention_heads} attention heads")
        self.query = nn.Parameter(torch.zeros(attention_heads, dim))

    def forward(self, states: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, length, dim) and a (batch, length) mask to (batch, dim) and the (batch, length) attention paid.

        The attention is the mean over the attention heads: zero at masked positions, one in sum over the rest.
        """
        batch, length, dim = states.shape
        keys = F.layer_norm(states, (dim,))
        scores = SHARPNESS * torch.einsum("hd,bld->bhl", self.query, keys)
        mask = attention_mask.bool()[:, None]  # (batch, 1, length)
        weights = scores.float().masked_fill(~mask, -torch.inf).softmax(dim=-1)  # (batch, heads, length)
        parts = states.view(batch, length, len(self.query), -1)
        attended = torch.einsum("bhl,blhw->bhw", weights.to(parts.dtype), parts)  # (batch, heads, width)
        return attended.reshape(batch, dim), weights.mean(dim=1)  # the attention heads' parts side by side


class Head(nn.Module):
    """Classifies a text for one task from the shared encoder's token states: pooling, layer norm, dropout, classifier.

    The norm comes after the pooling: before it, it would take from the states their lengths, by which the encoder says
    how much each token counts. A subclass says how it pools.
    """

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=1e-12)  # the length of what is pooled makes no difference
        self.dropout = Dropout(DROPOUT)
        self.classifier = nn.Linear(dim, classes)

    def layers(self) -> list[nn.Module]:
        """The layers that have parameters, in order from the encoder, dropout with the one that reads it."""
        return [self.norm, nn.ModuleList([self.dropout, self.classifier])]

    def attend(self, states: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, length, dim) states and a (batch, length) mask to (batch, dim), and the (batch, length) attention."""
        raise NotImplementedError

    def forward(self, states: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, length, dim) states and (batch, length) mask to (batch, classes) and (batch, length) attention."""
        pooled, attention = self.attend(states, attention_mask)
        return self.classifier(self.dropout(self.norm(pooled))), attention

    @torch.no_grad()
    def grow_from(self, smaller: "Head") -> None:
        """Take over a head with fewer classes, which become the first of this one's; the others start at their mean.

        So no text is taken for one of those before training.
        """
        classes = smaller.classifier.out_features
        for name, module in smaller.named_children():
            if name != "classifier":
                setattr(self, name, module)
        for ours, theirs in zip(self.classifier.parameters(), smaller.classifier.parameters(), strict=True):
            ours[:classes], ours[classes:] = theirs, theirs.mean(dim=0)


class TaskHead(Head):
    """Pools by an attention of its own: each task looks at other words."""

    def __init__(self, dim: int, classes: int, attention_heads: int = 8) -> None:
        super().__init__(dim, classes)
        self.attention = AttentionPooling(dim, attention_heads)

    def layers(self) -> list[nn.Module]:
        return [self.attention, *super().layers()]

    def attend(self, states: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        return self.attention(states, attention_mask)


class LinearHead(Head):
    """Pools as the encoder does: a classifier of the sentence embedding. Its attention is even over the real tokens."""

    def __init__(self, dim: int, classes: int, pooling: str = "mean") -> None:
        super().__init__(dim, classes)
        self.pooling = pooling

    def attend(self, states: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        even = attention_mask / attention_mask.sum(dim=1, keepdim=True)
        return pool(states.float(), attention_mask, self.pooling), even


@dataclass(frozen=True)
class MultiTaskOutput:
    """One pass: for each task (batch, classes) logits and (batch, length) attention."""

    logits: dict[str, Tensor]
    attention: dict[str, Tensor]


class MultiTaskModel(nn.Module):
    """A shared encoder and one head for each task.

    Args:
        tasks: the labels of each task by its name; both may be any text.
        kind: of the heads: "attention" (TaskHead) or "linear" (LinearHead).

    Attributes:
        new: the tasks whose heads have learned nothing yet.
        grown: the tasks whose heads have learned, but not all of their labels.
        temperatures: what each task's logits are divided by before they become probabilities (common/calibration.py).
    """

    def __init__(
        self,
        encoder: Encoder,
        tasks: Mapping[str, Sequence[str]],
        attention_heads: int | None = None,
        kind: str = "attention",
    ) -> None:
        super().__init__()
        if kind not in HEAD_KINDS:
            raise UserError(f"must be one of {', '.join(HEAD_KINDS)}, not {kind}", "head")
        self.encoder, self.kind = encoder, kind
        self.tasks = {task: list(labels) for task, labels in tasks.items()}
        # The encoder's own number of attention heads, where it is known.
        self.attention_heads = attention_heads or getattr(encoder.config, "num_attention_heads", 8)
        self.new, self.grown = set(self.tasks), set()
        self.temperatures = dict.fromkeys(self.tasks, 1.0)
        self.heads = nn.ModuleDict({head_key(task): self._new_head(len(labels)) for task, labels in self.tasks.items()})

    def _new_head(self, classes: int) -> Head:
        if self.kind == "linear":
            return LinearHead(self.encoder.dim, classes, self.encoder.pooling)
        return TaskHead(self.encoder.dim, classes, self.attention_heads)

    def with_tasks(self, tasks: Mapping[str, Sequence[str]]) -> "MultiTaskModel":
        """The same encoder and heads, with a new head for each task that has none yet, and room for new labels.

        Old labels keep their order and their weights.
        """
        kept = {
            task: [*labels, *(x for x in tasks.get(task, []) if x not in labels)] for task, labels in self.tasks.items()
        }
        added = {task: labels for task, labels in tasks.items() if task not in self.tasks}
        model = MultiTaskModel(self.encoder, {**kept, **added}, self.attention_heads, self.kind)
        for task, labels in self.tasks.items():
            if kept[task] == labels:
                model.heads[head_key(task)] = self.head(task)
            else:
                model.head(task).grow_from(self.head(task))
        longer = {task for task, labels in self.tasks.items() if kept[task] != labels}
        model.new, model.grown = self.new | added.keys(), self.grown | (longer - self.new)
        model.temperatures |= self.temperatures
        return model

    def description(self) -> list[Any]:
        """What decides, beside the weights, what the model makes of a text; JSON holds it."""
        return [*self.encoder.description(), self.tasks, self.kind, self.attention_heads]

    def dataset(self, rows: LabelledRows) -> MultiTaskDataset:
        """Labelled rows as what this model is trained on, or measured by."""
        return MultiTaskDataset(rows, self.tasks, self.encoder.tokenizer)

    def head(self, task: str) -> Head:
        """The head of a task."""
        return self.heads[head_key(task)]

    def named_stages(self) -> dict[str, nn.Module]:
        """What can be frozen or have a rate of its own, bottom up: the encoder's stages, the heads' layers, by name.

        Every parameter is in exactly one of them.
        """
        heads = {name: stage for task in self.tasks for name, stage in self.head_stages(task).items()}
        return {**self.encoder.named_stages(), **heads}

    def head_stages(self, task: str) -> dict[str, nn.Module]:
        """The layers of a task's head by name, in order from the encoder."""
        return {f"{task} head {n}": layer for n, layer in enumerate(self.head(task).layers(), 1)}

    def frozen_stages(self, *words: str) -> list[str]:
        """The stages that freezing words name, bottom up: "encoder", "head:TASK", "stages:A-B", "all" or "none".

        Raises:
            UserError: a word that names nothing.
        """
        return frozen_stages(
            list(self.encoder.named_stages()), {task: list(self.head_stages(task)) for task in self.tasks}, words
        )

    def freeze(self, *words: str) -> None:
        """Keep the stages that the words name from training: no gradients, no optimizer state, no dropout.

        Raises:
            UserError: a word that names nothing.
        """
        for name in self.frozen_stages(*words):
            self.named_stages()[name].requires_grad_(False)

    @property
    def encoder_is_frozen(self) -> bool:
        """Whether no parameter of the encoder trains."""
        return is_frozen(self.encoder)

    def set_dropout(self, share: float) -> None:
        """The share of values dropped while training from now on, in the encoder and the heads."""
        self.encoder.set_dropout(share)
        for task in self.tasks:
            self.head(task).dropout.p = share

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        """(batch, length) ids and mask to each task's (batch, classes) logits."""
        return self.outputs(input_ids, attention_mask).logits

    def outputs(self, input_ids: Tensor, attention_mask: Tensor) -> MultiTaskOutput:
        """Everything one pass through the shared encoder gives."""
        return self.classify(self.encoder.token_states(input_ids, attention_mask), attention_mask)

    def classify(self, states: Tensor, attention_mask: Tensor) -> MultiTaskOutput:
        """What the heads make of the encoder's (batch, length, dim) token states."""
        results = {task: self.head(task)(states, attention_mask) for task in self.tasks}
        return MultiTaskOutput(
            logits={task: logits for task, (logits, _) in results.items()},
            attention={task: attention for task, (_, attention) in results.items()},
        )

    def probabilities(self, task: str, logits: Tensor) -> Tensor:
        """What a task's (rows, classes) logits say of each class: rows that add up to 1."""
        return (logits.float() / self.temperatures[task]).softmax(dim=-1)

    def logits(
        self, items: Sequence[Mapping[str, Any]], batch_tokens: int | None = None, precision: str = "auto"
    ) -> dict[str, Tensor]:
        """Each task's (rows, classes) logits, in fp32 on the CPU, in the order given.

        Args:
            items: a row's token `ids` each, and its (length, dim) `states` where the encoder has given them already.
        """
        collected = {task: torch.empty(len(items), len(labels)) for task, labels in self.tasks.items()}
        for indices, output in self._batches(self.classify, items, batch_tokens, precision):
            for task, logits in output.logits.items():
                collected[task][indices] = logits.float().cpu()
        return collected

    def pooled(
        self, task: str, items: Sequence[Mapping[str, Any]], batch_tokens: int | None = None, precision: str = "auto"
    ) -> Tensor:
        """What the head of a task pools, (rows, dim), of items as `logits` takes them."""
        collected = torch.empty(len(items), self.encoder.dim)
        for indices, (pooled, _) in self._batches(self.head(task).attend, items, batch_tokens, precision):
            collected[indices] = pooled.float().cpu()
        return collected

    @torch.inference_mode()
    def _batches(
        self,
        compute: Callable[[Tensor, Tensor], Found],
        items: Sequence[Mapping[str, Any]],
        batch_tokens: int | None,
        precision: str,
    ) -> Iterator[tuple[list[int], Found]]:
        """What is computed of the items' states and mask, batch by batch, with the items' places."""
        device, known = self.encoder.device, bool(items) and "states" in items[0]
        encoder = self.encoder if known else lowered(self.encoder, precision)
        budget = resolve_batch(batch_tokens, device)
        for indices in token_budget_batches([len(item["ids"]) for item in items], budget):
            input_ids, attention_mask = self.encoder.tokenizer.pad([items[i]["ids"] for i in indices])
            attention_mask = attention_mask.to(device)
            with evaluating(self), autocast(device, precision):
                if known:
                    states = pad_states([items[i]["states"] for i in indices]).to(device)
                else:
                    states = encoder.token_states(input_ids.to(device), attention_mask)
                found = compute(states, attention_mask)
            yield indices, found

    def predict(
        self, texts: Sequence[str], explain: bool = False, batch_tokens: int | None = None, precision: str = "auto"
    ) -> list[dict[str, dict[str, Any]]]:
        """Classify texts: for each, `{task: {"label": ..., "probabilities": {label: ...}}}`, in the order given.

        Args:
            explain: also give `"attention"`, how much of its attention the task's head paid to each word, as
                (word, share) in the order of the text; the shares add up to 1.

        Raises:
            TypeError: an element is not a string, or `texts` is a single string.
        """
        if isinstance(texts, str):
            raise TypeError("predict takes a list of texts, not a single string")
        rows = self.encoder.tokenizer(texts)
        words = [self.encoder.tokenizer.words(text) for text in texts] if explain else []
        results: list[dict[str, dict[str, Any]]] = [{} for _ in rows]
        items = [{"ids": row} for row in rows]
        for indices, output in self._batches(self.classify, items, batch_tokens, precision):
            for task, labels in self.tasks.items():
                probabilities = self.probabilities(task, output.logits[task]).tolist()
                for place, i in enumerate(indices):
                    by_label = dict(zip(labels, probabilities[place], strict=True))
                    results[i][task] = {"label": max(by_label, key=by_label.get), "probabilities": by_label}
                    if explain:
                        shares = output.attention[task][place, : len(rows[i])].tolist()
                        results[i][task]["attention"] = [
                            (word, sum(shares[position] for position in positions)) for word, positions in words[i]
                        ]
        return results

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the encoder's folder with `heads.safetensors` and `tasks.json` beside it.

        Raises:
            UserError: the folder cannot be written.
        """
        with atomic_folder(folder) as temporary:
            self.encoder.write_folder(temporary)
            save_file({name: tensor.cpu() for name, tensor in self.heads.state_dict().items()}, temporary / HEADS)
            self.write_tasks(temporary)

    def write_tasks(self, folder: Path) -> None:
        """Write `tasks.json`, which is all of a saved model but its weights, into an existing folder."""
        described = {
            "tasks": self.tasks,
            "head": self.kind,
            "attention_heads": self.attention_heads,
            "temperatures": self.temperatures,
        }
        write_json(folder / TASKS, described)

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path) -> "MultiTaskModel":
        """Open a saved multi-task model, in evaluation mode.

        Raises:
            UserError: there is none, or its files are damaged.
        """
        folder = model_folder(name_or_path)
        if not (folder / TASKS).is_file():
            raise UserError(f"{folder}: no multi-task model there (no {TASKS})")
        encoder = load_encoder(folder)
        try:
            described = json.loads((folder / TASKS).read_text(encoding="utf-8"))
            model = cls(encoder, described["tasks"], described["attention_heads"], described["head"])
            model.heads.load_state_dict(load_file(folder / HEADS))
            model.temperatures |= {task: float(t) for task, t in described["temperatures"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
            reason = (str(error).splitlines() or [""])[0]
            raise UserError(f"{folder}: its {HEADS} or {TASKS} cannot be read ({reason})") from None
        model.new = set()
        return model.eval()


def head_key(task: str) -> str:
    """A task's name as a module's: any text will do, dots and the names of ModuleDict's own methods too."""
    return "task " + task.replace("%", "%25").replace(".", "%2E")
