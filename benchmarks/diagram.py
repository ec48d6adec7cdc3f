"""The model as a diagram: from a sentence, at the foot, up to its embedding and the answer to each task."""

from collections.abc import Sequence
from typing import NamedTuple
from xml.sax.saxutils import escape

from common.heads import MultiTaskModel
from common.optim import layerwise_learning_rates

# Lengths in pixels. As in SVG, y grows downwards.
WIDTH, MARGIN, TRUNK, COLUMN, BOX, ARROW = 880, 14, 370, 276, 30, 14
WHITE, BLUE, GREEN, ORANGE = "#ffffff", "#d6e6f5", "#dcefdc", "#fbe6cf"
SMALL, BOLD, FACTOR = 'font-size="13"', 'font-weight="bold"', 'font-size="13" fill="#a03020"'
HEAD_LAYERS = ("attention", "layer norm", "classifier")
PAGE = """<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}"
  font-family="Helvetica, Arial, sans-serif" font-size="14" fill="#222222" text-anchor="middle">
<marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" orient="auto">
  <path d="M0 0 L8 4 L0 8 z" fill="#555555"/>
</marker>
<rect width="{width}" height="{height}" fill="#ffffff"/>
{content}
</svg>
"""


class Box(NamedTuple):
    """A step of the model; a stage has its factor on the base learning rate."""

    label: str
    colour: str
    factor: float | None = None


def model_diagram(model: MultiTaskModel) -> str:
    """A model of two tasks as SVG: every stage by its name, with its factor from `layerwise_learning_rates`."""
    config, factors = model.encoder.config, layerwise_learning_rates(model, 1.0)
    embeddings, *layers = model.encoder.named_stages()
    trunk = [
        Box("a sentence", WHITE),
        Box("BERT's WordPiece tokenizer", WHITE),
        Box(f"{embeddings}: tokens + {config.positions} positions", BLUE, factors[embeddings]),
        *(Box(f"transformer {layer}", BLUE, factors[layer]) for layer in layers),
    ]
    pooling = [Box(f"{config.pooling} pooling over real tokens", GREEN), Box("L2 norm", GREEN)]
    columns = [(pooling, f"sentence embedding, {config.hidden_size} numbers", "task1.py")]
    for task, labels in model.tasks.items():
        stages = zip(model.head_stages(task), HEAD_LAYERS, strict=True)
        head = [Box(f"{stage}: {layer}", ORANGE, factors[stage]) for stage, layer in stages]
        columns.append((head, f"{task}, {len(labels)} classes", "task2.py"))

    middle, step = WIDTH / 2, BOX + ARROW
    top = MARGIN + 42  # below the answers
    fork = top + ARROW + len(HEAD_LAYERS) * step  # where the ways part
    foot = fork + len(trunk) * step
    content = [*stack(trunk, middle, TRUNK, foot), line(middle, fork + ARROW, middle, fork)]
    spread = (WIDTH - 2 * MARGIN - COLUMN) / (len(columns) - 1)
    for number, (boxes, answer, script) in enumerate(columns):
        x = MARGIN + COLUMN / 2 + number * spread
        content += [line(middle, fork, x, fork), arrow(x, fork, fork - ARROW), *stack(boxes, x, COLUMN, fork - ARROW)]
        content += [arrow(x, fork - len(boxes) * step, top), text(x, top - 26, answer, BOLD), text(x, top - 8, script)]
    side, y = (WIDTH - TRUNK) / 4, fork + ARROW + len(layers) * step / 2 - 20
    shape = f"{config.num_attention_heads} attention heads, {config.hidden_size} wide,"
    left = ["each layer:", shape, f"feed-forward {config.intermediate_size:,}"]
    right = ["× factor on the base", "learning rate", "(task4.py)"]
    content += [text(side, y + 20 * n, words, SMALL) for n, words in enumerate(left)]
    content += [text(WIDTH - side, y + 20 * n, words, FACTOR) for n, words in enumerate(right)]
    return PAGE.format(width=WIDTH, height=foot + MARGIN, content="\n".join(content))


def stack(boxes: Sequence[Box], x: float, width: float, foot: float) -> list[str]:
    """Boxes around `x`, the first on `foot`, with an arrow from each to the one above."""
    drawn = []
    for number, box in enumerate(boxes):
        y = foot - number * (BOX + ARROW) - BOX
        frame = f'x="{x - width / 2:g}" y="{y:g}" width="{width:g}" height="{BOX}" rx="5"'
        drawn.append(f'<rect {frame} fill="{box.colour}" stroke="#555555"/>')
        if box.factor is None:
            drawn.append(text(x, y + 20, box.label))
        else:  # the factor stands at the right end
            drawn.append(text(x - 24, y + 20, box.label))
            drawn.append(text(x + width / 2 - 28, y + 20, f"× {box.factor:.2f}", FACTOR))
        if number:
            drawn.append(arrow(x, y + BOX + ARROW, y + BOX))
    return drawn


def text(x: float, y: float, words: str, style: str = "") -> str:
    return f'<text x="{x:g}" y="{y:g}" {style}>{escape(words)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, style: str = "") -> str:
    return f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" stroke="#555555" {style}/>'


def arrow(x: float, start: float, end: float) -> str:
    return line(x, start, x, end, 'marker-end="url(#tip)"')
