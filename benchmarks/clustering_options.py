"""What each option of SSL.CLUSTERING makes of the features that a training run ended with; prints one JSON line.

    python train_net.py --config-file projects/SSL/configs/synthetic.yaml --num-gpus 1 OUTPUT_DIR output/synthetic
    python benchmarks/clustering_options.py output/synthetic

Every row clusters the same network's features with one option changed, as a first clustering (each learns a threshold
of its own), and is judged by the identities: precision and recall over pairs of boxes. Training never sees these
identities. The run stays as it is.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode, get_cfg
from person_search import add_ssl_config
from person_search.config import merge_file_and_options
from person_search.data import register_custom
from person_search.data.loader import build_bank_loader
from person_search.data.mapper import PersonSearchMapper
from person_search.engine import PersonSearchTrainer
from person_search.engine.bank_filling import extract_features
from person_search.engine.checks import build_clusterer, cluster_cameras
from person_search.errors import ConfigError, PersonSearchError
from person_search.labels import pair_precision_recall
from torch import Tensor

# Row -> what it changes; the first is the paper's clustering, with the radii and neighbors of the run.
ROWS: dict[str, tuple[object, ...]] = {
    "paper": (),
    "extract": ("FEATURES", "extract"),
    "camera_aware": ("CAMERA_AWARE", True),
    "no_same_image_rule": ("SAME_IMAGE_RULE", False),
    "hdbscan": ("ALGORITHM", "hdbscan"),
}


def load_run(folder: Path, options: list[str]) -> PersonSearchTrainer:
    """The state that a run ended in.

    Raises:
        ConfigError: the folder holds no run.
    """
    if not (folder / "config.yaml").is_file() or not (folder / "last_checkpoint").is_file():
        raise ConfigError(
            f"{folder} holds no training run: it needs config.yaml and a checkpoint, as train_net.py leaves"
        )
    cfg = get_cfg()
    add_ssl_config(cfg)
    merge_file_and_options(cfg, str(folder / "config.yaml"), ["OUTPUT_DIR", str(folder), *options])
    register_custom(cfg.DATASETS.CUSTOM)
    trainer = PersonSearchTrainer(cfg)
    trainer.resume_or_load(resume=True)
    return trainer


def extracted(trainer: PersonSearchTrainer) -> Tensor:
    """Features (N, d) of all boxes as the run's last network gives them, joined as the run joins them."""
    mapper = PersonSearchMapper(trainer.cfg, False, with_instances=True)
    loader = build_bank_loader(trainer.training_set.records, mapper, num_workers=trainer.cfg.DATALOADER.NUM_WORKERS)
    model = trainer.person_search_model
    return model.objective.source_features(*extract_features(model, loader))


def measure(trainer: PersonSearchTrainer, row: str) -> dict[str, float]:
    """Counts, agreement with the identities (fractions) and seconds of one row."""
    cfg: CfgNode = trainer.cfg.clone()
    cfg.defrost()
    changes = ROWS[row]
    cfg.merge_from_list([f"SSL.CLUSTERING.{c}" if i % 2 == 0 else c for i, c in enumerate(changes)])
    objective = trainer.person_search_model.objective
    start = time.perf_counter()
    features = extracted(trainer) if cfg.SSL.CLUSTERING.FEATURES == "extract" else objective.label_features()
    labels = build_clusterer(cfg).fit(features, objective.image_index, cluster_cameras(cfg, trainer.training_set))
    seconds = time.perf_counter() - start
    precision, recall = pair_precision_recall(labels, trainer.training_set.person_ids)
    sizes = np.bincount(labels)
    return {
        "clusters": int((sizes > 1).sum()),
        "singletons": int((sizes == 1).sum()),
        "precision": round(precision, 4),
        "recall": round(recall, 4),
        "seconds": round(seconds, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN_FOLDER")
    parser.add_argument("options", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="changes to the run's config")
    args = parser.parse_args()
    try:
        trainer = load_run(args.run, args.options)
        rows = {row: measure(trainer, row) for row in ROWS}
    except PersonSearchError as error:
        sys.exit(f"error: {error}")
    print(json.dumps({"run": str(args.run), "n": len(trainer.training_set), "rows": rows}))


if __name__ == "__main__":
    main()
