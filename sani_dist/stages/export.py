"""Stage `export`: the sanitised model as a Hugging Face folder."""

from __future__ import annotations

from sani_dist.stages.rank import Outputs, Rank


def run(rank: Rank) -> Outputs:
    """Every rank writes its shards. Without training, untouched tensors are streamed from the source and no engine is needed."""
    folder = rank.run.path("model")
    if rank.trains:
        hashes = rank.source.export_trained(rank.sanitised().model, folder)
    else:
        model, layout = rank.source.stored_layout()
        shards = list(rank.source.stored_shards())
        rank.erase(model, layout.parameters(shards))
        hashes = rank.source.export_stored(shards, folder)
    return {folder / name: sha for name, sha in hashes.items()}
