"""Configuration keys, files and the errors for wrong ones."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from detectron2.config import CfgNode, get_cfg
from person_search import add_ssl_config
from person_search.config import get_config, get_config_file, merge_file_and_options
from person_search.config_files import RENAMED_KEYS, current_name, flatten
from person_search.errors import ConfigError

CONFIGS = Path(__file__).resolve().parent.parent / "projects" / "SSL" / "configs"


def fresh() -> CfgNode:
    cfg = get_cfg()
    add_ssl_config(cfg)
    return cfg


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda p: p.stem)
def test_every_config_file_merges(path):
    cfg = fresh()
    merge_file_and_options(cfg, str(path), [])
    assert cfg.MODEL.META_ARCHITECTURE == "SSLPersonSearch"


@pytest.mark.parametrize(
    "name", ["prw", "prw.yaml", "ablations/dml", "projects/SSL/configs/prw.yaml", "methods/oim.yaml"]
)
def test_a_config_of_the_package_is_known_by_its_name_everywhere(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stem = name.removeprefix("projects/SSL/configs/").removesuffix(".yaml")
    expected = fresh()
    merge_file_and_options(expected, str(CONFIGS / f"{stem}.yaml"), ["SEED", "7"])
    assert get_config(name, ["SEED", "7"]) == expected
    assert Path(get_config_file(name)).samefile(CONFIGS / f"{stem}.yaml")


def test_a_file_of_ones_own_comes_before_the_packages_and_inherits_from_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prw").write_text("SEED: 5\n")
    assert get_config("prw").SEED == 5 and get_config("prw.yaml").SEED == 42
    for base in ("synthetic.yaml", "methods/oim.yaml"):
        (tmp_path / "mine.yaml").write_text(f"_BASE_: {base}\nSEED: 6\n")
        expected = get_config(base)
        expected.SEED = 6
        assert get_config("mine.yaml") == expected
    (tmp_path / "synthetic.yaml").write_text("SEED: 8\n")
    (tmp_path / "mine.yaml").write_text("_BASE_: synthetic.yaml\n")
    assert get_config("mine.yaml").SEED == 8
    (tmp_path / "mine.yaml").write_text("_BASE_: folder/synthetic.yaml\n")
    with pytest.raises(ConfigError, match="folder/synthetic.yaml does not exist: check its _BASE_"):
        get_config("mine.yaml")


def test_a_config_of_an_old_format_is_refused(tmp_path):
    (tmp_path / "old.yaml").write_text("VERSION: 1\n")
    with pytest.raises(ConfigError, match="old.yaml: VERSION is 1, expected 2"):
        get_config(str(tmp_path / "old.yaml"))


def test_values_of_the_paper():
    cfg = fresh()
    merge_file_and_options(cfg, str(CONFIGS / "prw.yaml"), [])
    ssl = cfg.SSL
    assert ssl.EXEMPLAR.SCALES == ((112, 48), (224, 96), (448, 192)) and ssl.EXEMPLAR.ORIGINAL
    assert (ssl.SCALE_LOSS.MARGIN, ssl.SCALE_LOSS.GAMMA) == (0.3, 0.05)
    assert (ssl.MEMORY.LAMBDA, ssl.MULTI_LABEL_LOSS.DELTA) == (0.8, 5.0)
    assert (ssl.THRESHOLD.INITIAL, ssl.THRESHOLD.ALPHA, ssl.THRESHOLD.BETA) == (0.6, 0.1, -0.1)
    clustering = ssl.CLUSTERING
    assert (clustering.K1, clustering.K2, clustering.EPS, clustering.MIN_SAMPLES) == (30, 6, (0.68, 0.70, 0.72), 4)
    assert (ssl.CLUSTER_LOSS.TEMPERATURE, ssl.CLUSTER_LOSS.HARD_NEGATIVE_MASS) == (0.05, 0.6)
    solver = cfg.SOLVER
    assert (solver.IMS_PER_BATCH, solver.BASE_LR, solver.MOMENTUM, solver.WEIGHT_DECAY) == (2, 0.001, 0.9, 5e-4)
    assert (solver.MAX_EPOCH, solver.STEP_EPOCHS, solver.GAMMA) == (26, (16, 22), 0.1)
    assert (cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST, cfg.INPUT.FORMAT) == (900, 1500, "RGB")
    assert (cfg.MODEL.BOX_HEAD.BOX_LOSS_WEIGHT, cfg.MODEL.REID_HEAD.EMBEDDING_DIM) == (10.0, 256)


def test_an_unknown_key_names_the_nearest(tmp_path):
    with pytest.raises(ConfigError, match=re.escape("SSL.SCALE_LOSS.MARGN; did you mean SSL.SCALE_LOSS.MARGIN")):
        merge_file_and_options(fresh(), "", ["SSL.SCALE_LOSS.MARGN", "0.2"])
    file = tmp_path / "wrong.yaml"
    file.write_text("SSL:\n  MEMORY:\n    LAMBDAA: 0.5\n")
    with pytest.raises(ConfigError, match="unknown config key SSL.MEMORY.LAMBDAA; did you mean SSL.MEMORY.LAMBDA"):
        merge_file_and_options(fresh(), str(file), [])


def test_a_value_of_another_type_and_a_missing_file_are_refused():
    with pytest.raises(ConfigError, match="SSL.MEMORY.LAMBDA"):
        merge_file_and_options(fresh(), "", ["SSL.MEMORY.LAMBDA", "often"])
    with pytest.raises(ConfigError, match="nowhere.yaml does not exist"):
        merge_file_and_options(fresh(), "nowhere.yaml", [])
    with pytest.raises(ConfigError, match="folder/prw.yaml does not exist: check --config-file"):
        merge_file_and_options(fresh(), "folder/prw.yaml", [])
    with pytest.raises(ConfigError, match="did you mean cuhk_sysu"):
        get_config("cuhk_sisu")
    with pytest.raises(ConfigError, match="command line"):
        merge_file_and_options(fresh(), "", ["SSL.MEMORY.LAMBDA"])
    with pytest.raises(ConfigError, match="--num-gpus follows a config key"):
        merge_file_and_options(fresh(), "", ["SSL.MEMORY.LAMBDA", "0.5", "--num-gpus", "1"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "expected a mapping of config keys"),
        ("only text", "expected a mapping of config keys"),
        ("SSL: [1, 2", "is no YAML: .*line 1, column"),
        ("_BASE_: absent.yaml\n", "absent.yaml does not exist: check its _BASE_"),
        ("SOLVER: {BASE_LR: fast}\n", "Type mismatch"),
    ],
)
def test_a_file_that_is_no_config_is_named(tmp_path, content, message):
    file = tmp_path / "broken.yaml"
    file.write_text(content)
    with pytest.raises(ConfigError, match=message) as raised:
        merge_file_and_options(fresh(), str(file), [])
    assert str(file) in str(raised.value) and "\n" not in str(raised.value)


def test_a_config_that_is_no_text_is_named(tmp_path):
    file = tmp_path / "latin.yaml"
    file.write_bytes(b"OUTPUT_DIR: 'caf\xe9'\n")
    with pytest.raises(ConfigError, match="latin.yaml"):
        merge_file_and_options(fresh(), str(file), [])


def test_a_wrong_value_on_the_command_line_is_not_blamed_on_the_file(tmp_path):
    file = tmp_path / "good.yaml"
    file.write_text("SOLVER: {BASE_LR: 0.1}\n")
    with pytest.raises(ConfigError, match="^command line: "):
        merge_file_and_options(fresh(), str(file), ["SOLVER.BASE_LR", "fast"])


def test_every_key_is_read_somewhere():
    """No option that does nothing: each key's name stands in the package outside config.py."""
    package = CONFIGS.parent / "person_search"
    code = "\n".join(p.read_text() for p in package.rglob("*.py") if p.name != "config.py")

    def leaves(node: CfgNode, prefix: str) -> list[str]:
        found = []
        for name, value in node.items():
            found += leaves(value, f"{prefix}{name}.") if isinstance(value, CfgNode) else [prefix + name]
        return found

    cfg = fresh()
    keys = leaves(cfg.SSL, "SSL.") + leaves(cfg.TEST.PERSON_SEARCH, "TEST.PERSON_SEARCH.")
    keys += leaves(cfg.OIM, "OIM.") + leaves(cfg.CGPS, "CGPS.") + leaves(cfg.RSIAMNET, "RSIAMNET.")
    keys += ["MODEL.OBJECTIVE.NAME", "INPUT.IDENTITIES"]
    keys += leaves(cfg.MODEL.BOX_HEAD, "MODEL.BOX_HEAD.") + leaves(cfg.MODEL.REID_HEAD, "MODEL.REID_HEAD.")
    keys += ["MODEL.ROI_BOX_HEAD.POOLING", "SOLVER.MAX_EPOCH", "SOLVER.STEP_EPOCHS", "SOLVER.CHECKPOINT_EPOCHS"]
    keys += ["SOLVER.CHECKPOINTS_KEPT", "SOLVER.LOG_PERIOD", "TEST.EVAL_EPOCHS", "TEST.EVAL_BEFORE_TRAINING"]
    unused = [k for k in keys if not re.search(rf"\b{k.rsplit('.', 1)[-1]}\b", code)]
    assert len(keys) > 40 and not unused


def test_a_key_that_is_gone_is_passed_over_with_a_line(tmp_path, caplog):
    (tmp_path / "old.yaml").write_text("SSL: {CLUSTERING: {SEARCH: exact, K1: 20}}\n")
    cfg = get_cfg()
    add_ssl_config(cfg)
    merge_file_and_options(cfg, str(tmp_path / "old.yaml"), ["SSL.CLUSTERING.SEARCH", "exact"])
    assert cfg.SSL.CLUSTERING.K1 == 20 and "SEARCH" not in cfg.SSL.CLUSTERING
    assert any("SSL.CLUSTERING.SEARCH" in record.getMessage() for record in caplog.records)


def test_keys_of_earlier_versions_are_understood_with_one_line(tmp_path, caplog):
    file = tmp_path / "old.yaml"
    file.write_text(f"_BASE_: {CONFIGS / 'prw.yaml'}\nSSL:\n  MEMORY: {{MOMENTUM: 0.5, INIT_BN_BATCHES: 7}}\n")
    cfg = fresh()
    merge_file_and_options(cfg, str(file), ["SSL.MEMORY.RENORMALIZE", "False"])
    assert (cfg.SSL.MEMORY.LAMBDA, cfg.SSL.MEMORY.CALIBRATION_FRAMES) == (0.5, 7) and not cfg.SSL.MEMORY.RENORMALIZE
    assert cfg.MODEL.META_ARCHITECTURE == "SSLPersonSearch"
    (line,) = caplog.messages
    assert line.startswith(str(file)) and "SSL.MEMORY.MOMENTUM is now SSL.MEMORY.LAMBDA" in line
    assert "SSL.MEMORY.INIT_BN_BATCHES is now SSL.MEMORY.CALIBRATION_FRAMES" in line

    caplog.clear()
    merge_file_and_options(cfg, "", ["SSL.MEMORY.MOMENTUM", "0.25", "SOLVER.BASE_LR", "0.5"])
    assert (cfg.SSL.MEMORY.LAMBDA, cfg.SOLVER.BASE_LR) == (0.25, 0.5)
    (line,) = caplog.messages
    assert line.startswith("command line") and "SSL.MEMORY.MOMENTUM is now SSL.MEMORY.LAMBDA" in line

    file.write_text(
        "MODEL: {SECOND_HEAD: {FIRST_HEAD_SCORE: False, BN_NECK: False}, FIRST_HEAD: {NMS_THRESH_TEST: 0.3}}"
    )
    merge_file_and_options(cfg, str(file), ["MODEL.SECOND_HEAD.EMBEDDING_DIM", "64"])
    reid = cfg.MODEL.REID_HEAD
    assert (reid.BOX_HEAD_SCORE, reid.BN_NECK, reid.EMBEDDING_DIM) == (False, False, 64)
    assert cfg.MODEL.BOX_HEAD.NMS_THRESH_TEST == 0.3

    file.write_text("SSL:\n  MEMORY: {MOMENTUM: 0.5, LAMBDA: 0.4}\n")
    with pytest.raises(ConfigError, match="SSL.MEMORY.MOMENTUM and SSL.MEMORY.LAMBDA are names of the same key"):
        merge_file_and_options(cfg, str(file), [])
    # Detectron2's own means name the new key.
    with pytest.raises(KeyError, match="SSL.MEMORY.LAMBDA"):
        cfg.merge_from_list(["SSL.MEMORY.MOMENTUM", 0.5])


def test_old_names_lead_to_keys_that_exist():
    keys = set(flatten(fresh()))
    for old, new in RENAMED_KEYS.items():
        assert not any(key == old or key.startswith(f"{old}.") for key in keys)
        assert any(key == current_name(old) or key.startswith(f"{current_name(old)}.") for key in keys), new


@pytest.mark.parametrize(
    ("file", "values"),
    [
        # torchvision 0.4.0, on which SeqNet and NAE are built, has L1 in its RPN; OIM's Caffe code smooth L1.
        ("prw", {"MODEL.RPN.SMOOTH_L1_BETA": 0.0, "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA": 1.0}),
        ("methods/seqnet", {"MODEL.RPN.SMOOTH_L1_BETA": 0.0, "SOLVER.WEIGHT_DECAY_BIAS": None}),
        (
            "methods/nae",
            {
                "MODEL.RPN.SMOOTH_L1_BETA": 0.0, "SOLVER.WEIGHT_DECAY_BIAS": 0.0, "SOLVER.BIAS_LR_FACTOR": 1.0,
                "MODEL.ROI_HEADS.POSITIVE_FRACTION": 0.5, "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": 10.0,
            },
        ),
        (
            "methods/oim",
            {
                "MODEL.RPN.SMOOTH_L1_BETA": 0.1111, "MODEL.ROI_HEADS.POSITIVE_FRACTION": 0.25,
                "INPUT.MIN_SIZE_TRAIN": (600,), "INPUT.MAX_SIZE_TEST": 1000, "SOLVER.WEIGHT_DECAY_BIAS": 0.0,
                "SOLVER.BIAS_LR_FACTOR": 2.0, "SOLVER.CLIP_GRADIENTS.ENABLED": False, "SOLVER.WARMUP_ITERS": 0,
                "MODEL.ROI_HEADS.NMS_THRESH_TEST": 0.4,
            },
        ),
        (
            "methods/cgps",
            {
                "MODEL.REID_HEAD.EMBEDDING": "fused_linear", "MODEL.REID_HEAD.GLOBAL_POOLING": "max",
                "MODEL.REID_HEAD.BOX_LOSS_WEIGHT": 1.0, "MODEL.REID_HEAD.BN_NECK": False,
                "MODEL.RPN.SMOOTH_L1_BETA": 0.0, "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA": 0.0, "SOLVER.IMS_PER_BATCH": 5,
                "SOLVER.BASE_LR": 0.001, "SOLVER.MAX_EPOCH": 24, "SOLVER.STEP_EPOCHS": (16, 22),
                "SOLVER.WARMUP_ITERS": 2242, "SOLVER.WARMUP_FACTOR": 0.005,
                "INPUT.MIN_SIZE_TRAIN": (400, 600, 800, 900, 1000, 1200), "INPUT.MIN_SIZE_TEST": 900,
                "INPUT.MAX_SIZE_TEST": 1500, "TEST.PERSON_SEARCH.SCORE_WEIGHTED": True,
                "TEST.PERSON_SEARCH.QUERY_FEATURE": "detection", "SSL.CLUSTER_LOSS.EPSILON": 1e-6,
            },
        ),
        ("cuhk_sysu", {"TEST.PERSON_SEARCH.CBGM.K1": 10, "TEST.PERSON_SEARCH.CBGM.K2": 3}),
        ("prw", {"TEST.PERSON_SEARCH.CBGM.K1": 30, "TEST.PERSON_SEARCH.CBGM.K2": 4}),
    ],
)  # fmt: skip
def test_values_of_the_methods_public_code(file, values):
    cfg = fresh()
    merge_file_and_options(cfg, str(CONFIGS / f"{file}.yaml"), [])
    for key, expected in values.items():
        value = cfg
        for part in key.split("."):
            value = value[part]
        assert value == expected, key
