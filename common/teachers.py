"""Teachers of a distillation: encoders whose embeddings are computed when first asked for, and kept on disk.

A pass over a large corpus costs several teachers more than it costs their student. What they say of a sentence never
changes, so that a second epoch, a resumed training and the next training on the same texts read it from a file.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from common.checkpoint import model_digest
from common.data import digest
from common.devices import resolve_precision
from common.embedding import Encoder
from common.errors import UserError
from common.files import atomic_file

LEAST_DEVIATION = 1e-3  # texts that are all alike have none
KEPT = "teachers"  # the folder beside a training's, in which all trainings beside each other keep and find them


class KeptEmbeddings:
    """An encoder's embeddings of some texts, in a file named after the encoder, how it computes, and the texts.

    The file is a `.npy` of (texts, dim + 1) float16: an embedding, and 1 once it is there. Processes on one machine
    may share it.

    Args:
        folder: where the file is, or will be.
        options: `precision` and `batch_tokens` of `encode`.

    Raises:
        UserError: the folder cannot be written.
    """

    def __init__(self, encoder: Encoder, texts: Sequence[str], folder: Path, **options: Any) -> None:
        self.encoder, self.texts, self.options = encoder, texts, options
        precision = resolve_precision(options.get("precision", "auto"), encoder.device)
        named = digest(model_digest(encoder), precision, texts)
        self.path = Path(folder) / f"{named[:16]}.npy"
        if not self.path.is_file():
            with atomic_file(self.path) as temporary:  # holes: it takes room only as rows are written
                np.lib.format.open_memmap(temporary, "w+", "float16", (len(texts), encoder.dim + 1))
        self._stored = np.load(self.path, mmap_mode="r")

    def __getitem__(self, index: Sequence[int]) -> np.ndarray:
        """The (rows, dim) float32 embeddings of the texts of these numbers."""
        index = np.asarray(index, dtype=int)
        while len(missing := np.unique(index[self._stored[index, -1] == 0])):
            self._keep(missing, self.encoder.encode([self.texts[i] for i in missing], **self.options))
            self._stored = np.load(self.path, mmap_mode="r")  # another training may have put a file of its own there
        return self._stored[index, :-1].astype(np.float32)

    def _keep(self, index: np.ndarray, embeddings: np.ndarray) -> None:
        """Write rows, in order, into the file: not through the map, where a full disk would end the program unsaid."""
        rows = np.pad(embeddings.astype(np.float16), ((0, 0), (0, 1)), constant_values=1)
        gaps = np.flatnonzero(np.diff(index) > 1) + 1  # what lies together is written at once
        try:
            with self.path.open("r+b") as stream:
                for i, part in zip(np.split(index, gaps), np.split(rows, gaps), strict=True):
                    stream.seek(self._stored.offset + int(i[0]) * part[0].nbytes)
                    stream.write(part.tobytes())
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written ({error.strerror})") from None


class JoinedTeachers:
    """Several encoders as one teacher: their embeddings side by side, of unit length together.

    Encoders differ in how far apart they put sentences. Each is divided by the root of the deviation of its cosines,
    so that in the joined cosine none outweighs the others; with one teacher that changes nothing.

    Args:
        kept: the embeddings of the same texts, an encoder each.
        sample: the numbers of texts by whose cosines, two or more, the teachers are weighed.
    """

    def __init__(self, kept: Sequence[KeptEmbeddings], sample: Sequence[int]) -> None:
        self.kept = kept
        self.weights = torch.tensor([max(cosine_deviation(one[sample]), LEAST_DEVIATION) ** -0.5 for one in kept])

    def __getitem__(self, index: Sequence[int]) -> Tensor:
        """The (rows, joined dim) embeddings of the texts of these numbers, unit rows."""
        parts = [weight * torch.from_numpy(one[index]) for weight, one in zip(self.weights, self.kept, strict=True)]
        return F.normalize(torch.cat(parts, dim=-1), dim=-1)


def cosine_deviation(embeddings: np.ndarray) -> float:
    """The standard deviation of the cosines of all pairs of (rows, dim) embeddings, unit rows."""
    return float((embeddings @ embeddings.T)[np.triu_indices(len(embeddings), 1)].std())
