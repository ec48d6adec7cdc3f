"""Any encoder by name: the project's own, any BERT, any other that transformers opens."""

from pathlib import Path

from common.bert import COMPACT
from common.embedding import Encoder
from common.encoder import SHIPPED, SentenceEncoder
from common.folders import model_folder, read_json
from common.pretrained import PretrainedEncoder


def load_encoder(name_or_path: str | Path | None = None) -> Encoder:
    """The encoder in a folder or of a hub's name, in evaluation mode; None: the shipped one.

    BERT's kind becomes a `SentenceEncoder`, any other a `PretrainedEncoder` behind the same methods. A folder needs no
    network; a hub name is taken from the local cache or fetched.

    Raises:
        UserError: there is no such model, it cannot be reached or opened, or it is no encoder of text.
    """
    folder = model_folder(name_or_path or SHIPPED)
    described = read_json(folder / "config.json", dict)
    is_bert = described.get("model_type") == "bert" and not described.get("is_decoder")
    if (folder / COMPACT).is_file() or is_bert:
        return SentenceEncoder.from_pretrained(folder)
    return PretrainedEncoder.from_pretrained(folder)
