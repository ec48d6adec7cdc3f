"""Rows as data sets of token ids: what a training draws its batches from."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from common.errors import UserError
from common.rows import LabelledRows
from common.tokenizer import SentenceTokenizer

UNLABELLED = -100  # torch's own mark for a row that takes no part in a cross-entropy


def digest(*content: object) -> str:
    """A short name for any content that JSON holds: the same for the same content."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


class SentenceDataset(Dataset):
    """Rows of one or more sentences each, as token ids, with an optional score for the row.

    An item is {"index", "ids" (of each sentence), "length", "score" (where there are scores)}. One sentence a row
    serves SimCSE and distillation, two are a pair, three a pair with a near miss.
    """

    def __init__(
        self, rows: Sequence[Sequence[str]], tokenizer: SentenceTokenizer, scores: Sequence[float] | None = None
    ) -> None:
        self.rows = [tuple(row) for row in rows]
        self.scores = None if scores is None else list(scores)
        self.tokenizer = tokenizer
        width = len(self.rows[0]) if self.rows else 1
        ids = tokenizer([sentence for row in self.rows for sentence in row])
        self.ids = [ids[i : i + width] for i in range(0, len(ids), width)]
        # What a row costs in a padded batch: all its sentences are as wide as the longest.
        self.lengths = [width * max(len(sentence) for sentence in row) for row in self.ids]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        score = {} if self.scores is None else {"score": self.scores[index]}
        return {"index": index, "ids": self.ids[index], "length": self.lengths[index], **score}

    def digest(self) -> str:
        """The same for the same rows in the same order, whatever the files they came from."""
        return digest(self.ids, self.scores)

    def collate(self, items: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """A batch: `input_ids` and `attention_mask` (columns × rows, length), column by column, and `scores`.

        `index` (rows,) says which rows of the data set these are.
        """
        columns = zip(*(item["ids"] for item in items), strict=True)
        input_ids, attention_mask = self.tokenizer.pad([ids for column in columns for ids in column])
        index = torch.tensor([item["index"] for item in items])
        batch = {"input_ids": input_ids, "attention_mask": attention_mask, "index": index}
        if self.scores is not None:
            batch["scores"] = torch.tensor([item["score"] for item in items])
        return batch


class MultiTaskDataset(Dataset):
    """Texts as token ids, each with a class for every task or the mark of a missing label.

    An item is {"index", "ids", "labels" (a class or UNLABELLED for each task, in their order), "length"}, and `states`
    (length, dim) where they are given: what the encoder makes of the tokens (common/states.py).

    Raises:
        UserError: a label that is none of its task's (the message says where); none of the tasks has a label.
    """

    states: Sequence[Tensor] | None = None

    def __init__(self, rows: LabelledRows, tasks: Mapping[str, Sequence[str]], tokenizer: SentenceTokenizer) -> None:
        self.tasks = {task: list(labels) for task, labels in tasks.items()}
        self.tokenizer = tokenizer
        self.texts = rows.texts
        self.classes: dict[str, list[int]] = {}
        for task, labels in self.tasks.items():
            number = {label: i for i, label in enumerate(labels)} | {None: UNLABELLED}
            given = rows.labels.get(task, [None] * len(rows.texts))
            for label, place in zip(given, rows.places, strict=True):
                if label not in number:
                    known = ", ".join(labels)
                    raise UserError(f'{place}: the model knows no label "{label}" for {task} (it knows: {known})')
            self.classes[task] = [number[label] for label in given]
        if not any(self.labelled(task) for task in self.tasks):
            where = f"{rows.places[0].rsplit(',', 1)[0]}: " if rows.places else ""
            raise UserError(f"{where}no labels for {' or '.join(self.tasks)}")
        self.ids = tokenizer(self.texts)
        self.lengths = [len(row) for row in self.ids]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        labels = [classes[index] for classes in self.classes.values()]
        states = {} if self.states is None else {"states": self.states[index]}
        return {"index": index, "ids": self.ids[index], "labels": labels, "length": self.lengths[index], **states}

    def labelled(self, task: str) -> int:
        """How many rows have a label for a task."""
        return sum(value != UNLABELLED for value in self.classes[task])

    def has_every_label(self, task: str) -> bool:
        """Whether a task has labels to tell apart, and rows for each of them."""
        return len(set(self.classes[task]) - {UNLABELLED}) == len(self.tasks[task]) > 1

    def digest(self) -> str:
        """The same for the same rows and labels in the same order, whatever the files they came from."""
        return digest(self.ids, self.classes, self.tasks)

    def collate(self, items: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """A batch: `input_ids` and `attention_mask` (rows, length), `labels` (rows, tasks) with UNLABELLED gaps.

        `index` (rows,) says which rows of the data set these are; `states` (rows, length, dim), where they are given.
        """
        input_ids, attention_mask = self.tokenizer.pad([item["ids"] for item in items])
        index, labels = (torch.tensor([item[name] for item in items]) for name in ("index", "labels"))
        states = {} if self.states is None else {"states": pad_states([item["states"] for item in items])}
        return {"input_ids": input_ids, "attention_mask": attention_mask, "index": index, "labels": labels, **states}


def pad_states(rows: Sequence[Tensor]) -> Tensor:
    """Rows of (length, dim) token states as one batch, (rows, longest, dim), zeros behind each row's end."""
    return pad_sequence(list(rows), batch_first=True)
