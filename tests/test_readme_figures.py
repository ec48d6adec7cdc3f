from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.image import imread

from benchmarks import figures, strategies
from benchmarks.diagram import model_diagram
from common.encoder import EncoderConfig, SentenceEncoder
from common.files import write_json
from common.heads import MultiTaskModel

TASKS = {"topic": ["a", "b", "c"], "mood": ["bad", "good"]}


@pytest.fixture
def small_model():
    config = EncoderConfig(hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=1_024)
    return MultiTaskModel(SentenceEncoder(config), TASKS)


@pytest.fixture
def records(tmp_path, monkeypatch):
    """Trainings of two strategies: one base rate with two seeds, another with one."""
    monkeypatch.setattr(strategies, "RESULTS", tmp_path)
    stages = ["embeddings", "layer 1", "topic head 1"]
    for strategy in ("uniform", "layerwise"):
        for rate, seed in ((1e-4, 0), (1e-4, 1), (5e-5, 0)):
            outcome = {
                "strategy": strategy,
                "test": {"topic": {"accuracy": 0.8 + 0.1 * seed}, "sentiment": {"macro_recall": 0.6}},
                "scored": [0.82, 0.75 + 0.02 * seed],
                "dev_scores": [[10, 0.5 + rate]],
                "gradients": {stage: [0.5, 1.0] for stage in stages},
            }
            write_json(strategies.result_path(strategy, rate, seed), outcome)


def test_every_figure_is_written_and_none_is_blank(records, tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "FOLDER", tmp_path / "figures")
    figures.main()
    written = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert written == ["forgetting.png", "gradients.png", "model.svg", "rates.png", "similarity.png", "speed.png"]
    for path in (tmp_path / "figures").glob("*.png"):
        assert imread(path)[..., :3].std() > 0.02


def test_what_is_kept_and_reached_is_drawn_as_means_over_the_seeds(records):
    figure = figures.forgetting_figure()
    plt.close(figure)
    (axes,) = figure.axes
    points = [container.lines[0].get_xydata()[0].tolist() for container in axes.containers]
    assert points == [pytest.approx([75, 0.7]), pytest.approx([76, 0.725])] * 2
    assert axes.lines[-1].get_xdata() == [82.0, 82.0]  # before training


def test_the_diagram_names_every_stage_with_its_factor(small_model):
    root = ElementTree.fromstring(model_diagram(small_model))
    words = " ".join(element.text for element in root.iter("{http://www.w3.org/2000/svg}text"))
    assert all(stage in words for stage in small_model.named_stages())
    for shown in ("× 0.43", "× 1.73", "topic, 3 classes", "2 attention heads, 32 wide", "feed-forward 1,024"):
        assert shown in words


def test_the_boxes_of_the_diagram_do_not_overlap(small_model):
    root = ElementTree.fromstring(model_diagram(small_model))
    page, *boxes = (
        np.array([float(r.get(side, 0)) for side in ("x", "y", "width", "height")])
        for r in root.iter("{http://www.w3.org/2000/svg}rect")
    )
    for number, (x, y, width, height) in enumerate(boxes):
        assert min(x, y) >= 0 and x + width <= page[2] and y + height <= page[3]
        for other_x, other_y, other_width, other_height in boxes[:number]:
            beside = x + width <= other_x or other_x + other_width <= x
            assert beside or y + height <= other_y or other_y + other_height <= y
