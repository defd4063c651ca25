"""The weights of a CNN's repeat, kept beside its record: repeat_0000.safetensors.

Nothing that is compared depends on them; cnn_explain.py asks them where the network looks.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from lungkit.data.repeats import Repeats
from lungkit.data.result import read_records, repeat_path, replicate_dir
from lungkit.learn.cnns import MODELS, build_model
from lungkit.run.faults import BadOptions, Fault, several
from lungkit.run.files import sha256, sha256_file, write_bytes

SHA256 = "kept_weights_sha256"  # of a record's `run`


def weights_path(directory: Path, repeat: int) -> Path:
    return repeat_path(directory, repeat).with_suffix(".safetensors")


def write(directory: Path, repeat: int, model) -> dict[str, str]:
    """Keep a trained model's weights, float32; return what the record's `run` says of them."""
    from safetensors.torch import save

    content = save({name: tensor.detach().cpu().contiguous()
                    for name, tensor in model.state_dict().items()})
    write_bytes(weights_path(directory, repeat), content)
    return {SHA256: sha256(content)}


def require(asked: Iterable[Repeats]) -> None:
    """Raise BadOptions where complete repeats have kept no weights: they are not made again."""
    for repeats in asked:
        pending = {each["repeat"] for each in repeats.pending}
        lacking = [str(each["repeat"]) for each in repeats.identities
                   if each["repeat"] not in pending
                   and not weights_path(repeats.directory, each["repeat"]).exists()]
        if lacking:
            raise BadOptions(f"--keep-weights: {repeats.directory} holds repeats without weights "
                             f"({several(lacking)}), which are complete: give another --results, "
                             "where the same options and seed train the same networks")


def load(results: Path, name: str, replicate: int, repeat: int):
    """A record and its trained model, in testing mode on the CPU.

    Raises Fault where there is no such record, or no weights of it, BadOptions where it is none of
    a network that can be shown images.
    """
    from safetensors.torch import load_file

    directory = replicate_dir(results, name, replicate)
    records = read_records(directory)
    if repeat not in records:
        raise Fault(f"{repeat_path(directory, repeat)} is not there: train it by cnn_classify.py "
                    "--keep-weights")
    record, path = records[repeat], weights_path(directory, repeat)
    if record.get("task") != "classify" or record.get("model") not in MODELS:
        raise BadOptions(f"{repeat_path(directory, repeat)} is of {record.get('model')}: only "
                         f"CNNs of cnn_classify.py are explained ({', '.join(MODELS)})")
    if record["settings"].get("frozen"):
        raise BadOptions(f"{repeat_path(directory, repeat)} is of a head on frozen features, which "
                         "has no map of its own: train the network whole, without --frozen")
    if not path.is_file():
        raise Fault(f"{path} is not there: repeats keep their weights by cnn_classify.py "
                    "--keep-weights (of complete ones in another --results)")
    if sha256_file(path) != (record.get("run") or {}).get(SHA256):
        raise Fault(f"{path} is not what was kept of this repeat: restore it, or train it again")
    model = build_model(record["model"], len(record["real"]["classes"]), None)
    model.load_state_dict(load_file(path))
    return record, model.eval()
