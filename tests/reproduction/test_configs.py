"""Rows on the configs of datasets: on the paper's they are the files in ablations/, on others only their own keys."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from detectron2.config import get_cfg
from person_search import add_ssl_config
from person_search.config import merge_file_and_options
from person_search.errors import ConfigError
from person_search.reproduction.configs import (
    base_config,
    config_digest,
    dataset_config_file,
    differing_keys,
    own_keys,
    row_config,
)
from person_search.reproduction.rows import PARAMETERS, PUBLISHED, SSL, TABLES, Row, spaced_scales, sweep_points

ABLATION_ROWS = [row for number in "123" for row in TABLES[number][1] if row.config]


@pytest.mark.parametrize("row", ABLATION_ROWS, ids=lambda row: row.name)
def test_on_prw_a_row_is_its_config_file(configs, row):
    """Whatever a row takes over from the base config is, with the paper's values, what the file says."""
    base = base_config(configs, "prw")
    cfg = row_config(base, row, 42, Path("x"), configs)
    expected = get_cfg()
    add_ssl_config(expected)
    merge_file_and_options(expected, str(configs / row.config), ["TEST.PERSON_SEARCH.SAVE_PROBLEM", "True"])
    expected.OUTPUT_DIR = "x"
    if row.name == "fixed_high":
        expected.SSL.THRESHOLD.INITIAL = 0.7
    assert yaml.safe_load(cfg.dump()) == yaml.safe_load(expected.dump())


def test_on_another_dataset_a_row_keeps_what_the_dataset_sets(configs, base):
    own = base_config(configs, "synthetic_tiny", options=["SSL.THRESHOLD.INITIAL", "0.5"])
    by_name = {row.name: row for row in ABLATION_ROWS}

    def changes(name: str) -> dict:
        return differing_keys(own, row_config(own, by_name[name], 0, Path("x"), configs))

    assert changes("sl") == {"SSL.MULTI_LABEL_LOSS.WEIGHT": 0.0}
    assert changes("one_scale")["SSL.EXEMPLAR.SCALES"] == (own.SSL.EXEMPLAR.SCALES[1],)
    assert changes("fixed_low") == {"SSL.THRESHOLD.ALPHA": 0.0}
    assert changes("fixed_high") == {"SSL.THRESHOLD.ALPHA": 0.0, "SSL.THRESHOLD.INITIAL": 0.6}
    assert differing_keys(base, row_config(base, SSL, 5, Path("y"), configs)) == {}


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [("prw", "prw"), ("cuhk_sysu", "cuhk_sysu"), ("synthetic_hard", "synthetic"), ("mall", "Base-SSL-R50-C4")],
)
def test_the_config_of_a_dataset(configs, dataset, expected):
    assert dataset_config_file(dataset, configs).stem == expected


def test_sets_can_be_named(configs):
    cfg = base_config(configs, "synthetic_hard")
    assert (cfg.DATASETS.TRAIN, cfg.DATASETS.TEST) == (("synthetic_hard_train",), ("synthetic_hard_test",))
    cfg = base_config(configs, "prw", test="cuhk_sysu_test")
    assert (cfg.DATASETS.TRAIN, cfg.DATASETS.TEST) == (("prw_train",), ("cuhk_sysu_test",))
    cfg = base_config(configs, train="synthetic_tiny_train", test="synthetic_tiny_test")
    assert cfg.DATASETS.TRAIN == ("synthetic_tiny_train",)
    assert cfg.MODEL.RESNETS.DEPTH == 50


def test_own_sets_come_from_a_config(configs, tmp_path):
    entry = {"FORMAT": "coco", "JSON": "a.json", "IMAGES": "a"}
    sets = {"CUSTOM": [{"NAME": "rep_a", **entry}], "TRAIN": ("rep_a",), "TEST": ("rep_a",)}
    file = tmp_path / "mine.yaml"
    content = {"_BASE_": str(configs / "synthetic.yaml"), "DATASETS": {**sets, "TRAIN": ["rep_a"], "TEST": ["rep_a"]}}
    file.write_text(yaml.safe_dump(content))
    assert tuple(base_config(configs, config_file=str(file)).DATASETS.TEST) == ("rep_a",)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dataset": "mall"}, "dataset mall_train is not registered"),
        ({"dataset": "prw", "test": "nowhere"}, "dataset nowhere is not registered"),
        ({"dataset": "prw", "options": ["DATASETS.TEST", "('prw_test', 'cuhk_sysu_test')"]}, "exactly one test set"),
        ({"dataset": "prw", "epochs": 3, "options": ["SOLVER.MAX_ITER", "9"]}, "--epochs 3 and SOLVER.MAX_ITER 9"),
        ({"dataset": "prw", "options": ["SOLVER.MAXITER", "9"]}, "unknown config key SOLVER.MAXITER"),
    ],
)
def test_a_wrong_setting_is_told_before_anything_is_trained(configs, arguments, message):
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        base_config(configs, **arguments)


def test_epochs_move_the_steps_of_the_learning_rate(configs):
    solver = base_config(configs, "prw", epochs=13).SOLVER
    assert (solver.MAX_EPOCH, solver.STEP_EPOCHS) == (13, (8.0, 11.0))


def test_own_keys_follow_bases_in_the_same_folder_alone(tmp_path):
    (tmp_path / "methods").mkdir()
    (tmp_path / "prw.yaml").write_text("SOLVER: {MAX_EPOCH: 26}\n")
    (tmp_path / "methods" / "a.yaml").write_text("_BASE_: ../prw.yaml\nMODEL: {X: {P: 1, Q: 2}}\nOUTPUT_DIR: o\n")
    (tmp_path / "methods" / "b.yaml").write_text(
        "_BASE_: a.yaml\nMODEL: {X: {Q: 3}}\nDATASETS: {TRAIN: [x]}\nSEED: 1\n"
    )
    assert own_keys(tmp_path / "methods" / "b.yaml") == {"MODEL": {"X": {"P": 1, "Q": 3}}, "SEED": 1}


def test_a_row_without_its_config_is_named(configs, base, tmp_path):
    with pytest.raises(ConfigError, match=r"methods/unheard_of.yaml does not exist"):
        row_config(base, Row("a", "A", "methods/unheard_of.yaml"), 0, tmp_path, configs)
    (tmp_path / "bad.yaml").write_text("SSL: {NO_SUCH: 1}\n")
    with pytest.raises(ConfigError, match=r"bad.yaml: Non-existent config key: SSL.NO_SUCH"):
        row_config(base, Row("a", "A", "bad.yaml"), 0, tmp_path, tmp_path)


def test_the_digest_leaves_out_the_folder_alone(configs, base):
    first = config_digest(row_config(base, SSL, 0, Path("x"), configs))
    assert first == config_digest(row_config(base, SSL, 0, Path("y"), configs))
    assert first != config_digest(row_config(base, SSL, 1, Path("x"), configs))
    changed = base_config(configs, "synthetic_tiny", options=["MODEL.DEVICE", "cpu", "SSL.SCALE_LOSS.MARGIN", "0.31"])
    assert first != config_digest(row_config(changed, SSL, 0, Path("x"), configs))


def test_every_row_has_published_figures():
    for number in "1234":
        rows = TABLES[number][1]
        assert set(PUBLISHED[number]) == {row.name for row in rows}


# ---------------------------------------------------------------------- sweep


def test_each_point_of_the_sweep_sets_its_own_value_alone(configs, base):
    for parameter, points in sweep_points([], base).items():
        assert list(points) == sorted(points) and len(points) > 1
        for value, row in points.items():
            changed = differing_keys(base, row_config(base, row, 0, Path("x"), configs))
            if value == parameter.default(base):
                assert (row, changed) == (SSL, {})
            else:
                assert list(changed) == [parameter.key]
    values = {p.name: p.default(base) for p in PARAMETERS.values()}
    assert (values["m"], values["scales"], values["backbone"]) == (0.3, 3.0, 0.0)


def test_values_of_ones_own_and_the_datasets(base):
    own = base.SSL.SCALE_LOSS.MARGIN
    (points,) = sweep_points(["m=0.01,7"], base).values()
    assert {value: row.name for value, row in points.items()} == {0.01: "m_0.01", own: "ssl", 7.0: "m_7"}


def test_thresholds_lie_around_the_datasets_own(configs):
    for initial in ("0.6", "0.85"):
        cfg = base_config(configs, "synthetic_tiny", options=["SSL.THRESHOLD.INITIAL", initial])
        (points,) = sweep_points(["t_s"], cfg).values()
        expected = [float(initial) + step for step in (-0.1, -0.05, 0, 0.05, 0.1)]
        assert list(points) == pytest.approx(expected) and points[float(initial)] == SSL


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("mu", "expected one of m, gamma"),
        ("m=1,x", "m=0.1,0.2"),
        ("m=0.1,nan", "nan cannot be trained: m takes numbers of at least 0"),
        ("t_s=inf", "inf cannot be trained: t_s takes numbers"),
        ("lambda=1.5", "1.5 cannot be trained: lambda takes numbers of at least 0 and of at most 1"),
        ("scales=2.5", "2.5 cannot be trained: scales takes whole numbers of at least 1"),
        ("backbone=0.5", "0.5 cannot be trained: backbone takes whole numbers of at least 0 and of at most 1"),
    ],
)
def test_a_sweep_of_nothing(base, word, message):
    with pytest.raises(ConfigError, match=message):
        sweep_points([word], base)


def test_scales_over_the_same_range(configs):
    prw = base_config(configs, "prw")
    assert spaced_scales(prw, 1) == ((224, 96),)
    assert spaced_scales(prw, 2) == ((112, 48), (448, 192))
    assert spaced_scales(prw, 3) == ((112, 48), (224, 96), (448, 192))
    with pytest.raises(ConfigError, match="0 fixed scales"):
        spaced_scales(prw, 0)
    four = spaced_scales(prw, 4)
    assert four[0] == (112, 48) and four[-1] == (448, 192)
    for (h0, w0), (h1, w1) in zip(four, four[1:], strict=False):
        assert h1 / h0 == pytest.approx(4 ** (1 / 3), rel=0.02) and w1 / w0 == pytest.approx(4 ** (1 / 3), rel=0.02)
