"""A model's folder: found by path or hub name, and sentence-transformers' description in it, read and written."""

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import get_session, snapshot_download
from huggingface_hub.constants import ENDPOINT

from common.errors import UserError

T = TypeVar("T", dict[str, Any], list[Any])
FILES = ("*.json", "*.txt", "*.model", "*.safetensors")  # of a hub's repository: all but weights to be unpickled
POOLINGS = {"mean": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token", "max": "pooling_mode_max_tokens"}
MODULES = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}  # with their folders
UNBOUNDED = 10**6  # a tokenizer that sets no bound writes 10^30
HEADS, TASKS = "heads.safetensors", "tasks.json"  # what a multi-task model has beside its encoder
LENGTH_FILE, POOLING_FILE, MODULES_FILE = "sentence_bert_config.json", "1_Pooling/config.json", "modules.json"


def model_folder(name_or_path: str | Path) -> Path:
    """The folder of that path; else that of the hub's model of that name, from the local cache or else fetched.

    Raises:
        UserError: there is no such folder and no such model, or the hub cannot be reached.
    """
    path = Path(name_or_path)
    if path.is_dir():
        return path
    if path.is_file() or path.is_absolute() or str(name_or_path).startswith("."):
        raise UserError(f"{name_or_path}: no such model folder")
    if cached := _cached_folder(str(name_or_path)):
        return cached
    try:
        # One plain request: without a network the hub's own client would try again for half a minute.
        get_session().head(ENDPOINT, timeout=10)
    except Exception:
        raise UserError(
            f"{name_or_path}: no such folder, not in the local cache, and the hub cannot be reached to fetch it"
        ) from None
    try:
        return Path(snapshot_download(str(name_or_path), allow_patterns=FILES))
    except Exception as error:
        raise UserError(f"{name_or_path}: the hub has no such model ({first_line(error)})") from None


def _cached_folder(name: str) -> Path | None:
    """The folder of a model in the hub's local cache, if it is there with its weights."""
    try:
        folder = Path(snapshot_download(name, local_files_only=True))
    except Exception:  # the hub's client has its own kinds of error for each thing that is missing
        return None
    return folder if (folder / "config.json").is_file() and any(folder.glob("*.safetensors")) else None


def open_from_folder(open_from: Callable[..., Any], folder: Path, what: str, **options: Any) -> Any:
    """What `open_from` (a `from_pretrained` of transformers) opens from a folder, with no network.

    Raises:
        UserError: it cannot be opened.
    """
    try:
        return open_from(str(folder), local_files_only=True, **options)
    except Exception as error:  # transformers and safetensors each raise their own kinds
        raise UserError(f"{folder}: the {what} there cannot be opened ({first_line(error)})") from None


def first_line(error: Exception) -> str:
    """The first sentence of a library's error, short enough to stand inside one of ours."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")[:160]


def read_json(path: Path, kind: type[T]) -> T:
    """What a JSON file holds, a list or an object; an empty one where there is no file.

    Raises:
        UserError: the file is damaged, or holds something else.
    """
    if not path.is_file():
        return kind()
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    if not isinstance(content, kind):
        raise UserError(f"{path}: holds no JSON {'object' if kind is dict else 'list'}")
    return content


@dataclass(frozen=True)
class Description:
    """What sentence-transformers' files say of a model: how it pools, and where it cuts texts (None: no word)."""

    pooling: str = "mean"
    max_length: int | None = None

    @classmethod
    def read(cls, folder: Path) -> "Description":
        """Read it from a model's folder; warn of what this project does otherwise.

        Raises:
            UserError: one of the files is damaged.
        """
        modules = [module.get("type", "").rsplit(".", 1)[-1] for module in read_json(folder / MODULES_FILE, list)]
        if unknown := [name for name in modules if name not in MODULES]:
            warnings.warn(f"{folder}: its {' and '.join(unknown)} is not known here and left out", stacklevel=3)
        length = read_json(folder / LENGTH_FILE, dict).get("max_seq_length")
        if modules and length is None:  # newer versions leave it to the tokenizer
            bound = read_json(folder / "tokenizer_config.json", dict).get("model_max_length", UNBOUNDED)
            length = bound if bound < UNBOUNDED else None
        described, names = read_json(folder / POOLING_FILE, dict), {key: name for name, key in POOLINGS.items()}
        flags = [names.get(key, key) for key, on in described.items() if key.startswith("pooling_mode_") and on]
        modes = described.get("pooling_mode") or flags or "mean"
        pooling = modes if isinstance(modes, str) else ", ".join(modes)  # several are joined end to end
        if pooling not in POOLINGS:
            warnings.warn(f"{folder}: made for a pooling not known here; the mean is taken instead", stacklevel=3)
            pooling = "mean"
        return cls(pooling, length)

    def write(self, folder: Path, dim: int) -> None:
        """Write modules.json and the files it names into an existing folder."""
        kind = "sentence_transformers.models."
        files = {
            MODULES_FILE: [
                {"idx": i, "name": str(i), "path": path, "type": kind + name}
                for i, (name, path) in enumerate(MODULES.items())
            ],
            LENGTH_FILE: {"max_seq_length": self.max_length, "do_lower_case": False},
            POOLING_FILE: {"word_embedding_dimension": dim, POOLINGS[self.pooling]: True},
        }
        (folder / "1_Pooling").mkdir()
        for name, content in files.items():
            (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
