import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.image import imread
from matplotlib.text import Text

from common.figures import (
    comparison_figure,
    confusion_figure,
    curves_figure,
    gradients_figure,
    map_figure,
    median_norms,
    rates_figure,
    save_figure,
    similarity_figure,
    training_figure,
)

STAGES = ["embeddings", "layer 1", "layer 2", "topic head 1"]
LONG = "gradual+/home/someone/experiments/layerwise/rates-that-fall-steeply-towards-the-embeddings.json"
SENTENCES = [f"sentence {n} costs $5 and $6" for n in range(12)]


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


def embeddings(rows):
    values = np.random.default_rng(0).normal(size=(rows, 600)).astype(np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def training(strategy, seed=0):
    gradients = {stage: [0.0 if stage == "embeddings" else 1.0 + n + seed for n in range(8)] for stage in STAGES}
    return {"strategy": strategy, "dev_scores": [(0, 0.2), (100, 0.8 + seed / 10)], "gradients": gradients}


def comparison_rows(*strategies):
    return [
        {"strategy": strategy, "seed": seed, "accuracy": 0.7 + 0.1 * seed}
        | {f"moved: {stage}": 0.01 * (seed + 1) for stage in STAGES}
        for strategy in strategies
        for seed in (0, 1)
    ]


HISTORY = [
    {"step": 10, "train topic loss": 1.5, "train topic accuracy": 0.3},
    {
        "step": 20,
        "train topic loss": 1.0,
        "train topic accuracy": 0.6,
        "dev topic loss": 1.2,
        "dev topic accuracy": 0.5,
    },
]
FIGURES = {
    "similarity": lambda: similarity_figure(SENTENCES, embeddings(12) @ embeddings(12).T),
    "map": lambda: map_figure(SENTENCES, embeddings(12)),
    "curves": lambda: curves_figure(HISTORY, ["topic", "$mood$"]),
    "rates": lambda: rates_figure(dict.fromkeys(STAGES, 2e-5), 2e-5),
    "comparison": lambda: comparison_figure(comparison_rows("uniform", "seed"), ["accuracy"], STAGES),
    "training": lambda: training_figure([training(name) for name in ("uniform", "seed", "decay", "gradual")]),
    "gradients": lambda: gradients_figure([training("uniform"), training("uniform", 1), training("layerwise")]),
    "confusion": lambda: confusion_figure(
        {"topic": {"confusion": [[3, 1], [0, 4]], "classes": ["$a$", "b"], "accuracy": 0.875}}
    ),
}


@pytest.mark.filterwarnings("ignore:No artists with labels")
@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_written_as_png_of_a_sensible_size(tmp_path, name):
    path = tmp_path / f"{name}.png"
    save_figure(FIGURES[name](), path)
    height, width, _ = imread(path).shape
    assert 300 <= height <= 3000 and 300 <= width <= 4000
    assert imread(path)[..., :3].std() > 0.02  # something is drawn
    assert plt.get_fignums() == []


def test_the_map_shows_the_first_two_principal_components():
    vectors = embeddings(40)
    axes = map_figure([f"sentence {n}" for n in range(40)], vectors).axes[0]
    points = np.asarray(axes.collections[0].get_offsets())
    left, singular, _ = np.linalg.svd(vectors - vectors.mean(axis=0), full_matrices=False)
    expected = left[:, :2] * singular[:2]
    np.testing.assert_allclose(np.abs(points), np.abs(expected), atol=1e-4)
    np.testing.assert_allclose(np.abs((points * expected).sum(axis=0)), singular[:2] ** 2, rtol=1e-4)  # one sign each
    share = singular[0] ** 2 / (singular**2).sum()
    assert axes.get_xlabel() == f"first principal component ({share:.0%} of the variance)"


@pytest.mark.parametrize("name", ["similarity", "map"])
def test_dollar_signs_in_a_sentence_begin_no_formula(name):
    texts = [text.get_text() for text in FIGURES[name]().findobj(Text) if "costs" in text.get_text()]
    assert texts
    assert all(text.count(r"\$") == text.count("$") == 2 * text.count("costs") for text in texts)


def test_the_training_figure_has_a_panel_for_the_scores_and_one_for_the_gradients_by_depth():
    above, below = training_figure([training("uniform"), training("decay")]).axes
    for axes in (above, below):
        assert axes.get_legend_handles_labels()[1] == ["uniform", "decay"]
    assert above.lines[0].get_xydata().tolist() == [[0, 0.2], [100, 0.8]]
    assert [label.get_text() for label in below.get_xticklabels()] == STAGES


def test_dev_scores_are_means_over_the_seeds():
    above, _ = training_figure([training("uniform", seed) for seed in (0, 1)]).axes
    assert above.lines[0].get_xydata() == pytest.approx(np.array([[0, 0.2], [100, 0.85]]))


def test_gradients_are_drawn_as_means_of_medians_and_no_line_joins_one_head_to_another():
    (axes,) = gradients_figure([training("uniform", seed) for seed in (0, 1)]).axes
    encoder, head = (container.lines[0] for container in axes.containers)
    np.testing.assert_allclose(encoder.get_xydata(), [[0, np.nan], [1, 5], [2, 5]])
    assert head.get_xydata().tolist() == [[3, 5]]


def test_a_median_norm_leaves_out_the_time_when_the_stage_was_frozen():
    medians = median_norms({"layer 1": [0.0, 0.0, 0.0, 2.0, 3.0, 5.0], "embeddings": [0.0, 0.0]})
    assert medians["layer 1"] == 3 and np.isnan(medians["embeddings"])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("strategies", [[LONG], ["uniform", LONG], [f"decay:0.{n}" for n in range(10, 30)]])
def test_many_strategies_and_long_names_leave_room_for_the_panels(strategies, tmp_path):
    rows = comparison_rows(*strategies)
    figure = comparison_figure(rows, ["accuracy"] * 4, STAGES)
    save_figure(figure, tmp_path / "comparison.png")
    assert all(axes.get_position().width * figure.get_figwidth() > 1.5 for axes in figure.axes)


def test_a_long_name_keeps_its_beginning_and_its_end():
    axes = comparison_figure(comparison_rows(LONG), ["accuracy"], STAGES).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["gradual+/…mbeddings.json"]


def test_bars_are_labelled_with_their_factor_on_the_base_rate():
    axes = rates_figure({"embeddings": 1e-5, "layer 1": 3e-5}, 2e-5).axes[0]
    assert {"0.500", "1.500"} <= {text.get_text() for text in axes.texts}


def test_only_figures_imports_matplotlib_and_it_needs_no_display():
    script = (
        "import sys, common.report; assert 'matplotlib' not in sys.modules; "
        "import common.figures, matplotlib; assert matplotlib.get_backend().lower() == 'agg'; "
        "assert 'sklearn' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parents[1])
